"""Tests that every host must pass: features, training, saving and loading equal those of our backbone."""

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
def test_features_in_the_host_equal_ours(host: str, net: str, weight_files: dict[str, Path], photos: Photos) -> None:
    """Bit for bit, for photographs of odd sizes and batches of one and two."""
    case = cases.case_of(host)
    model = case.build(net, weight_files[net], norm=case.norms[0], frozen=0).eval()
    ours = build_backbone(net, weights=weight_files[net], source="torchvision", norm=case.norms[0], frozen_stages=0)
    ours.eval()
    with torch.inference_mode():
        for pixels in (photos(2, 147, 203), photos(1, 96, 65)):
            expected, features = ours(pixels), case.features(model, pixels)
            assert all(torch.equal(features[level], expected[level]) for level in cases.LEVELS)
            assert expected["c5"].std() > 0.01


@pytest.mark.parametrize("frozen", [0, 2])
def test_training_step_changes_exactly_what_is_not_frozen(
    host: str, frozen: int, weight_files: dict[str, Path], photos: Photos, hashes: Callable[..., dict[str, str]]
) -> None:
    case = cases.case_of(host)
    for norm in case.norms:
        model = case.build("resnet18", weight_files["resnet18"], norm=norm, frozen=frozen)
        trainable, loss = case.training(model)
        trainable.train()
        body = case.body(model)
        before = hashes(dict(body.named_parameters()) | dict(body.named_buffers()))
        all_before = hashes(trainable.state_dict())
        # Adam changes every parameter with a gradient, however small
        optimizer = torch.optim.Adam([p for p in trainable.parameters() if p.requires_grad], lr=1e-3)
        loss(photos(2, 128, 160)).backward()
        optimizer.step()
        after = hashes(dict(body.named_parameters()) | dict(body.named_buffers()))
        frozen_prefixes = ("conv1.", "bn1.", "layer1.") if frozen else ()

        def is_trained(key: str, norm: str = norm, frozen_prefixes: tuple[str, ...] = frozen_prefixes) -> bool:
            in_norm = ".bn" in f".{key}" or "downsample.1" in key
            return not key.startswith(frozen_prefixes) and not (in_norm and norm == "frozen_bn")

        assert {key for key in before if before[key] != after[key]} == {key for key in before if is_trained(key)}
        if trainable is not model:  # the part of the host is trained too
            changed = {key for key, digest in hashes(trainable.state_dict()).items() if digest != all_before[key]}
            assert len(changed) > len([key for key in before if is_trained(key)])


def test_host_loads_what_it_saved(
    host: str, weight_files: dict[str, Path], tmp_path: Path, photos: Photos, hashes: Callable[..., dict[str, str]]
) -> None:
    case = cases.case_of(host)
    for norm in case.norms:
        (folder := tmp_path / norm).mkdir()
        model = case.build("resnet18", weight_files["resnet18"], norm=norm, frozen=0).eval()
        loaded = case.reload(model, folder, lambda norm=norm: case.build("resnet18", None, norm="bn", frozen=0)).eval()
        assert (
            hashes(case.body(loaded).state_dict()).items()
            >= {
                key: digest for key, digest in hashes(case.body(model).state_dict()).items() if "num_batches" not in key
            }.items()
        )
        with torch.inference_mode():
            expected, features = (case.features(m, photos(1, 100, 130)) for m in (model, loaded))
        # the loaded model may have batch norms, which are not folded: rounding differs
        assert all(torch.allclose(features[level], expected[level], atol=1e-4, rtol=1e-4) for level in cases.LEVELS)


@pytest.mark.parametrize("levels", [("c2", "c3"), ("c2", "c3", "c4"), ("c3", "c5"), ("c5",)])
def test_only_the_requested_levels_are_returned_and_built(
    host: str, levels: tuple[str, ...], weight_files: dict[str, Path], photos: Photos
) -> None:
    """No stage beyond the deepest requested level is built."""
    case = cases.case_of(host)
    if case.depth_only and levels[0] != "c2":
        pytest.skip("the encoders of smp return all levels up to their depth")
    model = case.build("resnet18", weight_files["resnet18"], norm="bn", frozen=0, levels=levels).eval()
    ours = build_backbone(
        "resnet18", weights=weight_files["resnet18"], source="torchvision", norm="bn", frozen_stages=0
    ).eval()
    pixels = photos(1, 90, 70)
    with torch.inference_mode():
        features, expected = case.features(model, pixels), ours(pixels)
    assert [level for level in features if level in cases.LEVELS] == list(levels)
    assert all(torch.equal(features[level], expected[level]) for level in levels)
    assert len(case.body(model).stage_names()) == int(levels[-1][1:])


def test_features_in_bfloat16_and_under_autocast_equal_ours(
    host: str, weight_files: dict[str, Path], photos: Photos
) -> None:
    """Bit for bit; features with weights in bfloat16 are also close to those in float32."""
    case = cases.case_of(host)
    norm = case.norms[0]
    model = case.build("resnet18", weight_files["resnet18"], norm=norm, frozen=0).eval()
    ours = build_backbone(
        "resnet18", weights=weight_files["resnet18"], source="torchvision", norm=norm, frozen_stages=0
    )
    ours.eval()
    pixels = photos(1, 96, 128)
    with torch.inference_mode():
        float32_features = ours(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            features, expected = case.features(model, pixels), ours(pixels)
        assert all(torch.equal(features[level], expected[level]) for level in cases.LEVELS)
        features, expected = (case.features(model.bfloat16(), pixels.bfloat16()), ours.bfloat16()(pixels.bfloat16()))
    for level in cases.LEVELS:
        assert features[level].dtype == torch.bfloat16 and torch.equal(features[level], expected[level])
        error = (features[level].float() - float32_features[level]).abs().max()
        assert error <= 0.05 * float32_features[level].abs().max()


def test_second_registration_keeps_the_classes_and_gives_no_warning(
    host: str, recwarn: pytest.WarningsRecorder
) -> None:
    case = cases.case_of(host)
    recwarn.clear()
    first = case.build("resnet18", None, norm="bn", frozen=0)
    cases.register(host)
    second = case.build("resnet18", None, norm="bn", frozen=0)
    assert type(first) is type(second) and type(case.body(first)) is type(case.body(second))
    assert not [w for w in recwarn if "verwrit" in str(w.message) or "already" in str(w.message)]


def test_weights_of_another_depth_are_refused(host: str, weight_files: dict[str, Path], tmp_path: Path) -> None:
    """No host may silently load only the keys that match."""
    if host == "detectron2":
        pytest.skip("detectron2's checkpointer loads matching keys and logs the rest; a backbone cannot change that")
    with pytest.raises((ValueError, RuntimeError), match="layer"):
        cases.case_of(host).build("resnet18", weight_files["resnet50"], norm="bn", frozen=0)


def test_load_weights_loads_into_the_body_of_the_hosts_model(host: str, weight_files: dict[str, Path]) -> None:
    case = cases.case_of(host)
    model = case.build("resnet18", None, norm="bn", frozen=0)
    if host == "detectron2":
        pytest.skip("the state dict has detectron2's keys, so detectron2's checkpointer loads it")
    report = load_weights(case.body(model), weight_files["resnet18"], source="torchvision")
    assert report.complete and len(report.loaded) >= 100
