"""One suite for every host: what it sees of our backbone, trains, saves and loads, is ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_backbone import build_backbone, load_weights
from tests.resnet_backbone.hosts import cases

Photos = Callable[[int, int, int], Tensor]


@pytest.fixture(params=list(cases.CASES))
def host(request: pytest.FixtureRequest) -> str:
    cases.case_of(request.param)
    return request.param


@pytest.mark.parametrize("net", ["resnet18", "resnet50", "resnet101"])
def test_the_host_sees_our_features(host: str, net: str, weight_files: dict[str, Path], photos: Photos) -> None:
    """Bit for bit, of photographs of an odd size, in a batch and alone."""
    case = cases.case_of(host)
    model = case.build(net, weight_files[net], norm=case.norms[0], frozen=0).eval()
    ours = build_backbone(net, weights=weight_files[net], source="torchvision", norm=case.norms[0], frozen_stages=0)
    ours.eval()
    with torch.inference_mode():
        for pixels in (photos(2, 147, 203), photos(1, 96, 65)):
            wanted, found = ours(pixels), case.features(model, pixels)
            assert all(torch.equal(found[level], wanted[level]) for level in cases.LEVELS)
            assert wanted["c5"].std() > 0.01


@pytest.mark.parametrize("frozen", [0, 2])
def test_one_step_changes_what_should_and_nothing_else(
    host: str, frozen: int, weight_files: dict[str, Path], photos: Photos, hashes: Callable[..., dict[str, str]]
) -> None:
    case = cases.case_of(host)
    for norm in case.norms:
        model = case.build("resnet18", weight_files["resnet18"], norm=norm, frozen=frozen)
        whole, loss = case.training(model)
        whole.train()
        body = case.body(model)
        before, rest = hashes(dict(body.named_parameters()) | dict(body.named_buffers())), hashes(whole.state_dict())
        # Adam moves whatever has a gradient, however small
        optimizer = torch.optim.Adam([p for p in whole.parameters() if p.requires_grad], lr=1e-3)
        loss(photos(2, 128, 160)).backward()
        optimizer.step()
        after = hashes(dict(body.named_parameters()) | dict(body.named_buffers()))
        still = ("conv1.", "bn1.", "layer1.") if frozen else ()

        def should(key: str, norm: str = norm, still: tuple[str, ...] = still) -> bool:
            of_a_norm = ".bn" in f".{key}" or "downsample.1" in key
            return not key.startswith(still) and not (of_a_norm and norm == "frozen_bn")

        assert {key for key in before if before[key] != after[key]} == {key for key in before if should(key)}
        if whole is not model:  # the host's own part trains too
            changed = {key for key, digest in hashes(whole.state_dict()).items() if digest != rest[key]}
            assert len(changed) > len([key for key in before if should(key)])


def test_what_the_host_saves_it_loads(
    host: str, weight_files: dict[str, Path], tmp_path: Path, photos: Photos, hashes: Callable[..., dict[str, str]]
) -> None:
    case = cases.case_of(host)
    for norm in case.norms:
        (folder := tmp_path / norm).mkdir()
        model = case.build("resnet18", weight_files["resnet18"], norm=norm, frozen=0).eval()
        again = case.again(model, folder, lambda norm=norm: case.build("resnet18", None, norm="bn", frozen=0)).eval()
        assert (
            hashes(case.body(again).state_dict()).items()
            >= {
                key: digest for key, digest in hashes(case.body(model).state_dict()).items() if "num_batches" not in key
            }.items()
        )
        with torch.inference_mode():
            want, got = (case.features(m, photos(1, 100, 130)) for m in (model, again))
        # the other one's norms may be live ones, which are not folded: the same up to rounding
        assert all(torch.allclose(got[level], want[level], atol=1e-4, rtol=1e-4) for level in cases.LEVELS)


@pytest.mark.parametrize("levels", [("c2", "c3"), ("c2", "c3", "c4"), ("c3", "c5"), ("c5",)])
def test_some_levels_only(host: str, levels: tuple[str, ...], weight_files: dict[str, Path], photos: Photos) -> None:
    """The levels that were asked for, and no stage deeper than the deepest of them."""
    case = cases.case_of(host)
    if case.depth_only and levels[0] != "c2":
        pytest.skip("its encoders give every level down to their depth")
    model = case.build("resnet18", weight_files["resnet18"], norm="bn", frozen=0, levels=levels).eval()
    ours = build_backbone(
        "resnet18", weights=weight_files["resnet18"], source="torchvision", norm="bn", frozen_stages=0
    ).eval()
    pixels = photos(1, 90, 70)
    with torch.inference_mode():
        found, wanted = case.features(model, pixels), ours(pixels)
    assert [level for level in found if level in cases.LEVELS] == list(levels)
    assert all(torch.equal(found[level], wanted[level]) for level in levels)
    assert len(case.body(model).stage_names()) == int(levels[-1][1:])


def test_bfloat16(host: str, weight_files: dict[str, Path], photos: Photos) -> None:
    """Weights in bfloat16, and autocast: bit for bit what ours gives."""
    case = cases.case_of(host)
    norm = case.norms[0]
    model = case.build("resnet18", weight_files["resnet18"], norm=norm, frozen=0).eval()
    ours = build_backbone(
        "resnet18", weights=weight_files["resnet18"], source="torchvision", norm=norm, frozen_stages=0
    )
    ours.eval()
    pixels = photos(1, 96, 128)
    with torch.inference_mode():
        exact = ours(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            found, wanted = case.features(model, pixels), ours(pixels)
        assert all(torch.equal(found[level], wanted[level]) for level in cases.LEVELS)
        found, wanted = (case.features(model.bfloat16(), pixels.bfloat16()), ours.bfloat16()(pixels.bfloat16()))
    for level in cases.LEVELS:
        assert found[level].dtype == torch.bfloat16 and torch.equal(found[level], wanted[level])
        assert (found[level].float() - exact[level]).abs().max() <= 0.05 * exact[level].abs().max()


def test_registering_again_is_harmless(host: str, recwarn: pytest.WarningsRecorder) -> None:
    """The same names mean the same afterwards, and nobody is warned of an overwritten one."""
    case = cases.case_of(host)
    recwarn.clear()
    first = case.build("resnet18", None, norm="bn", frozen=0)
    cases.register(host)
    second = case.build("resnet18", None, norm="bn", frozen=0)
    assert type(first) is type(second) and type(case.body(first)) is type(case.body(second))
    assert not [w for w in recwarn if "verwrit" in str(w.message) or "already" in str(w.message)]


def test_a_whole_net_of_another_depth_is_refused(host: str, weight_files: dict[str, Path], tmp_path: Path) -> None:
    """Weights that load half and say nothing are what this project is against, in every host."""
    if host == "detectron2":
        pytest.skip("its checkpointer loads what fits, and logs the rest; there is no way into it for a backbone")
    with pytest.raises((ValueError, RuntimeError), match="layer"):
        cases.case_of(host).build("resnet18", weight_files["resnet50"], norm="bn", frozen=0)


def test_our_loader_takes_the_hosts_model(host: str, weight_files: dict[str, Path]) -> None:
    case = cases.case_of(host)
    model = case.build("resnet18", None, norm="bn", frozen=0)
    if host == "detectron2":
        pytest.skip("its state dict carries detectron2's names: detectron2's checkpointer is its loader")
    report = load_weights(case.body(model), weight_files["resnet18"], source="torchvision")
    assert report.complete and len(report.loaded) >= 100
