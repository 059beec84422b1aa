"""`load_weights`: strict loading, the report of every key, damaged files, and pickles that would run code."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from resnet_backbone import (
    RESNETS,
    ResNetBackbone,
    ResNetClassifier,
    ResNetSpec,
    WeightMismatch,
    build_backbone,
    load_weights,
)
from resnet_backbone.blocks import BasicBlock, Bottleneck

Hashes = Callable[[Mapping[str, Tensor]], dict[str, str]]
SPEC = ResNetSpec(BasicBlock, (1, 1, 2), widths=(4, 8, 16))


def backbone(**changes: Any) -> ResNetBackbone:
    return ResNetBackbone(SPEC, **{"out_levels": ["c2", "c3", "c4"], **changes})


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The state dict of a classifier with batch norm: every key that a published file has."""
    net = ResNetClassifier(SPEC, num_classes=5, norm="bn")
    return {key: torch.randn(value.shape) if value.ndim else value for key, value in net.state_dict().items()}


def without(state: Mapping[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in keys}


def test_missing_keys_are_named_and_the_model_is_unchanged(state: dict[str, Tensor], hashes: Hashes) -> None:
    net = backbone()
    before = hashes(net.state_dict())
    with pytest.raises(WeightMismatch, match=r"missing \(2\): conv1.weight, layer2.0.bn1.weight") as error:
        load_weights(net, without(state, "conv1.weight", "layer2.0.bn1.weight"))
    assert error.value.report.missing == ("conv1.weight", "layer2.0.bn1.weight")
    assert hashes(net.state_dict()) == before


def test_unexpected_key_is_named_and_the_model_is_unchanged(state: dict[str, Tensor], hashes: Hashes) -> None:
    net = backbone()
    before = hashes(net.state_dict())
    with pytest.raises(WeightMismatch, match=r"unexpected \(1\): layer1.0.se.weight"):
        load_weights(net, {**state, "layer1.0.se.weight": torch.zeros(4)})
    assert hashes(net.state_dict()) == before


def test_shape_mismatch_names_both_shapes_and_the_model_is_unchanged(state: dict[str, Tensor], hashes: Hashes) -> None:
    net = backbone()
    before = hashes(net.state_dict())
    with pytest.raises(WeightMismatch, match=r"conv1.weight file \(4, 1, 7, 7\) model \(4, 3, 7, 7\)") as error:
        load_weights(net, {**state, "conv1.weight": torch.zeros(4, 1, 7, 7)})
    assert error.value.report.mismatched == {"conv1.weight": ((4, 1, 7, 7), (4, 3, 7, 7))}
    assert hashes(net.state_dict()) == before


def test_error_for_many_wrong_keys_names_the_first_and_counts_the_rest(state: dict[str, Tensor]) -> None:
    with pytest.raises(
        WeightMismatch, match=r"(?s)missing \(\d+\): conv1.weight, .* and \d+ more\n.*No key fits"
    ) as error:
        load_weights(backbone(), {f"resnet.{key}": value for key, value in state.items()})
    assert len(str(error.value)) < 700


def test_every_key_of_the_model_has_the_loaded_value(state: dict[str, Tensor]) -> None:
    net = backbone()
    report = load_weights(net, state)
    assert report.complete and set(report.loaded) == set(net.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_keys_that_the_net_does_not_use_are_reported_without_an_error(state: dict[str, Tensor]) -> None:
    report = load_weights(backbone(out_levels=["c3"]), state)
    assert set(report.unused_by_design) == {
        key for key in state if key.startswith(("fc.", "layer3.")) or key.endswith("num_batches_tracked")
    }
    assert not set(report.loaded) & set(report.unused_by_design)
    assert set(report.loaded) | set(report.unused_by_design) == set(state)


def test_batch_norm_counters_are_loaded_and_not_reported_as_unused(state: dict[str, Tensor]) -> None:
    net = backbone(norm="bn")
    report = load_weights(net, {**state, "bn1.num_batches_tracked": torch.tensor(7)})
    assert net.bn1.num_batches_tracked == 7
    assert not set(report.loaded) & set(report.unused_by_design)


def test_keys_of_a_stage_that_the_net_lacks_are_unexpected(state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightMismatch, match="unexpected.*layer4.0.conv1.weight"):
        load_weights(backbone(), {**state, "layer4.0.conv1.weight": torch.zeros(1)})


def test_classifier_refuses_a_wrong_or_missing_fc(state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightMismatch, match=r"fc.weight file \(5, 16\) model \(9, 16\)"):
        load_weights(ResNetClassifier(SPEC, num_classes=9), state)
    with pytest.raises(WeightMismatch, match=r"missing \(2\): fc.weight, fc.bias"):
        load_weights(ResNetClassifier(SPEC, num_classes=5), without(state, "fc.weight", "fc.bias"))


def test_allow_missing_keeps_and_reports_the_initial_values(state: dict[str, Tensor]) -> None:
    net = ResNetClassifier(SPEC, num_classes=9)
    initial = net.fc.weight.clone()
    report = load_weights(net, state, allow_missing=["fc.*"])
    assert set(report.kept_initial) == {"fc.weight", "fc.bias"} and report.complete
    assert torch.equal(net.fc.weight, initial) and torch.equal(net.state_dict()["conv1.weight"], state["conv1.weight"])


def test_strict_false_loads_matching_keys_and_reports_the_rest(state: dict[str, Tensor]) -> None:
    net = backbone()
    report = load_weights(net, {**without(state, "conv1.weight"), "extra": torch.zeros(1)}, strict=False)
    assert report.missing == ("conv1.weight",) and report.unexpected == ("extra",) and not report.complete
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_load_the_same_with_any_wrapper_key_prefix_and_format(
    wrapper: str | None, prefix: str, suffix: str, state: dict[str, Tensor], tmp_path: Path, hashes: Hashes
) -> None:
    path = tmp_path / f"net{suffix}"
    content: dict[str, Any] = {prefix + key: value for key, value in state.items()}
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
    net, expected = backbone(), backbone()
    load_weights(net, path, source="torchvision")
    load_weights(expected, state)
    assert hashes(net.state_dict()) == hashes(expected.state_dict())


def test_prefix_of_only_some_keys_is_not_removed(state: dict[str, Tensor]) -> None:
    mixed = {("module." + key if key == "conv1.weight" else key): value for key, value in state.items()}
    with pytest.raises(WeightMismatch, match="unexpected.*module.conv1.weight"):
        load_weights(backbone(), mixed)


def test_published_cifar_weights_load_completely(shared: Path) -> None:
    net = ResNetClassifier("resnet20_cifar", num_classes=10)
    report = load_weights(net, shared / "weights" / "cifar" / "resnet20-12fca82f.th")
    assert report.complete and not report.kept_initial and set(report.loaded) >= set(dict(net.named_parameters()))


def test_weights_of_another_depth_are_refused(imagenet_weights: Path) -> None:
    with pytest.raises(WeightMismatch, match="Another depth, width or number of classes"):
        build_backbone("resnet34", weights=imagenet_weights / "resnet18-imagenet.pth", source="torchvision")
    with pytest.raises(WeightMismatch, match="layer1.0.conv1.weight file .* model"):
        build_backbone("resnet18", weights=imagenet_weights / "resnet50-imagenet.pth", source="torchvision")


class RunsCode:
    """Unpickling an instance creates a file; any other command could be run the same way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_would_run_code_is_refused_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    path, created = tmp_path / "evil.pth", tmp_path / "created"
    torch.save({"conv1.weight": RunsCode(created)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match="evil.pth holds more than tensors and would run code when read .*open.*: it was refused"
    ):
        load_weights(backbone(), path)
    assert not created.exists()
    torch.load(path, weights_only=False)  # unsafe loading runs the code
    assert created.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".legacy.pth"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_named_and_the_model_is_unchanged(
    suffix: str, keep: float, state: dict[str, Tensor], tmp_path: Path, hashes: Hashes
) -> None:
    path, net = tmp_path / f"net{suffix}", backbone()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == ".pth")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    before = hashes(net.state_dict())
    with pytest.raises(ValueError, match=f"net{suffix} is not a whole .* file .*: copy or download it again"):
        load_weights(net, path)
    assert hashes(net.state_dict()) == before


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>404 Not Found</html>", b"hello world", b"PK\x03\x04", b"\xff" * 40]
)
def test_other_content_under_a_weights_name_is_reported_as_not_a_torch_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="net.pth is not a whole torch file"):
        load_weights(backbone(), path)


def test_file_with_another_hash_than_in_its_name_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "net.pth")
    digest = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    correct, incorrect = tmp_path / f"net-{digest[:8]}.pth", tmp_path / "net-01234567.pth"
    for path in (correct, incorrect):
        path.write_bytes((tmp_path / "net.pth").read_bytes())
    assert load_weights(backbone(), correct, source="torchvision").complete
    with pytest.raises(ValueError, match=f"has SHA-256 {digest[:8]}.*its name says 01234567"):
        load_weights(backbone(), incorrect)


def test_error_for_a_missing_file_lists_the_published_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights at .*nowhere.pth.*imagenet1k_v1"):
        load_weights(backbone(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("content", "summary"), [({"epoch": 3, "lr": 0.1}, "epoch, lr"), ([1, 2], "list"), ({}, "nothing")]
)
def test_error_for_a_file_without_a_state_dict_lists_its_content(content: Any, summary: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=f"no state dict in this file \\(it holds {summary}\\)"):
        load_weights(backbone(), tmp_path / "net.pth")


def test_loading_into_any_module_is_strict() -> None:
    with pytest.raises(WeightMismatch, match=r"missing \(1\): bias"):
        load_weights(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})


def test_report_of_a_mismatch_can_be_pickled_for_worker_processes(state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightMismatch) as error:
        load_weights(ResNetBackbone(RESNETS["resnet18"]), state)
    assert error.value.report.mismatched and isinstance(error.value, ValueError)
    assert pickle.loads(pickle.dumps(error.value.report)) == error.value.report


def test_basic_block_weights_are_refused_by_a_bottleneck_net(state: dict[str, Tensor]) -> None:
    with pytest.raises(WeightMismatch):
        load_weights(ResNetBackbone(ResNetSpec(Bottleneck, (1, 1, 2), widths=(4, 8, 16)), out_levels=["c4"]), state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("strict", [True, False])
def test_tensors_that_are_not_finite_are_refused_with_the_first_key_and_the_count(
    bad: float, strict: bool, state: dict[str, Tensor], hashes: Hashes
) -> None:
    net = backbone()
    before = hashes(net.state_dict())
    state["layer1.0.bn1.running_var"][1] = bad
    state["layer2.0.conv1.weight"][0] = bad
    message = r"2 of \d+ tensors hold NaN or infinite values, first layer1.0.bn1.running_var \(1 of 4 values\)"
    with pytest.raises(ValueError, match=message):
        load_weights(net, state, strict=strict)
    assert hashes(net.state_dict()) == before


def test_values_too_large_for_the_model_are_refused(state: dict[str, Tensor]) -> None:
    wide = {key: value.double() for key, value in state.items()}
    assert load_weights(backbone(), wide).complete
    wide["conv1.weight"][0] = 1e300
    with pytest.raises(ValueError, match=r"1 of \d+ tensors hold NaN or infinite values, first conv1.weight \(147 of"):
        load_weights(backbone(), wide)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_tensors_of_other_numbers_are_refused(dtype: torch.dtype, state: dict[str, Tensor]) -> None:
    kind = str(dtype)
    with pytest.raises(ValueError, match=rf"\d+ of \d+ tensors hold no floating-point numbers, first .* \({kind}\)"):
        load_weights(backbone(), {key: value.to(dtype) for key, value in state.items()})


def test_quantised_and_empty_tensors_are_refused(state: dict[str, Tensor]) -> None:
    quantised = torch.quantize_per_tensor(state["conv1.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors hold no floating-point .*conv1.weight \(torch.qint8\)"):
        load_weights(backbone(), {**state, "conv1.weight": quantised})
    with pytest.raises(ValueError, match="a shape without values"):
        load_weights(backbone(), {key: value.to("meta") for key, value in state.items()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision_load(dtype: torch.dtype, state: dict[str, Tensor]) -> None:
    net = backbone()
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    assert load_weights(net, stored).complete
    assert torch.equal(net.state_dict()["conv1.weight"], stored["conv1.weight"].float())
