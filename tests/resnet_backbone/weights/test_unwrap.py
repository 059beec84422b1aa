"""Wrappers, prefixes and averaged weights, in files that torch, timm, torchvision and Lightning's layout write."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import load_state_dict as timm_state_dict
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from resnet_backbone import RESNETS, ResNetBackbone, ResNetClassifier, WeightMismatch, load_weights
from resnet_backbone.build import open_weights
from resnet_backbone.weights.sources import AmbiguousWeights
from resnet_backbone.weights.unwrap import AVERAGED, OTHER_WRAPPERS, PREFIXES, WRAPPERS, unwrap

State = dict[str, Tensor]


class Holder(nn.Module):
    """A module that holds a net under a name, such as a LightningModule."""

    def __init__(self, net: nn.Module, name: str = "model") -> None:
        super().__init__()
        self.add_module(name, net)


def loads(model: nn.Module, weights: Any, expected: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Load the weights completely and compare every tensor; the notes of the report."""
    report = load_weights(model, weights, source="torchvision")
    assert report.complete and not report.kept_initial
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    return report.notes


@pytest.fixture
def state(narrow: ResNetClassifier) -> State:
    return narrow.state_dict()


@pytest.fixture
def fresh(narrow: ResNetClassifier) -> ResNetClassifier:
    return ResNetClassifier(narrow.spec, num_classes=5)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, for DistributedDataParallel."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_compiled_net_in_a_module_in_ddp_loads_and_its_prefix_is_said(
    narrow: ResNetClassifier, fresh: ResNetClassifier, state: State, tmp_path: Path
) -> None:
    wrapped = nn.parallel.DistributedDataParallel(Holder(torch.compile(narrow)))  # type: ignore[arg-type]
    torch.save({"model": wrapped.state_dict(), "epoch": 3}, tmp_path / "ddp.pth")
    notes = loads(fresh, tmp_path / "ddp.pth", state)
    assert notes == ("taken from 'model'", f"prefix 'module.model._orig_mod.' removed from all {len(state)} keys")


def test_the_weights_that_timms_trainer_averaged_are_taken_as_timm_takes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=3)
    ema = ModelEmaV3(net, decay=0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    ema.update(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    args = argparse.Namespace(model="resnet18", lr=0.1)
    saver = CheckpointSaver(net, optimiser, args, ema, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=np.float64(0.5))
    path = tmp_path / "last.pth.tar"
    averaged = timm_state_dict(str(path), weights_only=False)  # timm cannot read its own trainer's file safely
    assert not torch.equal(averaged["conv1.weight"], net.state_dict()["conv1.weight"])
    ours = ResNetClassifier("resnet18", num_classes=3)
    (note,) = loads(ours, path, averaged)
    assert "averaged (EMA) weights taken, from 'state_dict_ema'; not taken: state_dict" in note
    loads(ours, open_weights(path, part="state_dict"), net.state_dict())


def test_the_average_beside_torchvisions_weights_is_taken(
    narrow: ResNetClassifier, fresh: ResNetClassifier, tmp_path: Path
) -> None:
    average = AveragedModel(narrow, use_buffers=True)
    expected = {key.removeprefix("module."): value.clone() for key, value in average.state_dict().items()}
    with torch.no_grad():
        narrow.fc.weight.zero_()
    content = {"model": narrow.state_dict(), "model_ema": average.state_dict(), "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "checkpoint.pth")
    notes = loads(fresh, tmp_path / "checkpoint.pth", expected)
    assert any("from 'model_ema'; not taken: model" in note for note in notes)
    assert any(note.startswith("n_averaged") for note in notes)


def test_mmengines_average_is_under_the_name_of_the_raw_weights(fresh: ResNetClassifier, state: State) -> None:
    """Its EMAHook swaps the two when it saves, so that `state_dict` is what is deployed."""
    raw = {f"module.{key}": value + 1 for key, value in state.items()} | {"steps": torch.tensor(3)}
    content = {"message_hub": {}, "state_dict": state, "ema_state_dict": raw}
    (note,) = loads(fresh, content, state)
    assert "averaged (EMA) weights taken, from 'state_dict'; not taken: ema_state_dict" in note


@settings(max_examples=40, deadline=None)
@given(
    chain=st.lists(st.sampled_from(PREFIXES), max_size=4),
    wrappers=st.lists(st.sampled_from([*WRAPPERS, *OTHER_WRAPPERS, *AVERAGED]), max_size=3),
)
def test_any_nesting_of_wrappers_and_prefixes_gives_the_tensors(chain: list[str], wrappers: list[str]) -> None:
    weight = torch.randn(2, 3)
    state = {"weight": weight, "bias": torch.zeros(2)}
    content: Any = {"".join(chain) + key: value for key, value in state.items()}
    for wrapper in reversed(wrappers):
        content = {wrapper: content, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    linear = nn.Linear(3, 2)
    report = load_weights(linear, content)
    assert torch.equal(linear.weight, weight)
    said = " ".join(report.notes)
    assert all(f"'{'.'.join(wrappers[: i + 1])}'" in said for i in range(len(wrappers))), said
    assert ("".join(chain) in said) == bool(chain) or not chain


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "backbone.", "encoder.net."])
def test_a_module_that_has_the_prefix_itself_keeps_it(prefix: str) -> None:
    module: nn.Module = nn.Linear(3, 2)
    for name in reversed(prefix.rstrip(".").split(".")):
        module = Holder(module, name)
    state = {key: torch.randn(value.shape) for key, value in module.state_dict().items()}
    report = load_weights(module, state)
    assert set(report.loaded) == set(state) and not report.notes


@pytest.mark.parametrize("prefix", ["encoder.", "backbone.", "encoder.model."])
def test_the_net_of_a_larger_model_is_taken_and_the_rest_is_reported(
    prefix: str, narrow: ResNetClassifier, state: State
) -> None:
    file = {prefix + key: value for key, value in state.items() if not key.startswith("fc.")}
    file["decoder.blocks.0.weight"] = torch.zeros(3)
    body = ResNetBackbone(narrow.spec)
    report = load_weights(body, file, source="torchvision")
    assert "decoder.blocks.0.weight" in report.unused_by_design
    assert report.notes == (f"the net is under {prefix!r} in the file",)
    assert torch.equal(body.state_dict()["layer3.1.bn2.running_var"], state["layer3.1.bn2.running_var"])


def test_a_backbone_that_is_no_detectors_may_be_of_any_project(
    fresh: ResNetClassifier, state: State, tmp_path: Path
) -> None:
    """Also its linear layer is found beside it."""
    file = {key if key.startswith("fc.") else f"backbone.{key}": value for key, value in state.items()}
    torch.save(file, tmp_path / "mine.pth")
    with pytest.raises(AmbiguousWeights, match="(?s)source='mmdetection'.*source='torchvision'"):
        load_weights(fresh, tmp_path / "mine.pth")
    loads(fresh, tmp_path / "mine.pth", state)
    torch.save({**file, "rpn_head.rpn_cls.weight": torch.zeros(1)}, tmp_path / "detector.pth")
    with pytest.raises(ValueError, match="source='torchvision' uses other keys: these are of mmdetection or"):
        load_weights(fresh, tmp_path / "detector.pth", source="torchvision")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("stage", ["conv1", "layer2", "layer4"])
def test_a_half_prefixed_file_is_refused_with_its_first_keys(
    prefix: str, stage: str, fresh: ResNetClassifier, state: State
) -> None:
    file = {(prefix if key.startswith(stage) else "") + key: value for key, value in state.items()}
    with pytest.raises(WeightMismatch, match=rf"keys begin with '{prefix}', first {prefix}{stage}.*do not, first"):
        load_weights(fresh, file)
    if stage == "layer4":  # also by a net that does not build the stage
        inverse = {("" if key.startswith(stage) else prefix) + key: value for key, value in state.items()}
        with pytest.raises(WeightMismatch, match=rf"keys begin with '{prefix}', first {prefix}conv1"):
            load_weights(ResNetBackbone(fresh.spec, out_levels=["c3"]), inverse)


def test_a_file_with_two_nets_is_refused_with_their_prefixes(fresh: ResNetClassifier, state: State) -> None:
    file = {prefix + key: value for prefix in ("encoder.", "backbone.") for key, value in state.items()}
    with pytest.raises(WeightMismatch, match="several nets, under 'backbone.', 'encoder.'"):
        load_weights(fresh, file)


def test_several_state_dicts_are_refused_unless_they_are_equal(
    fresh: ResNetClassifier, state: State, tmp_path: Path
) -> None:
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"model": other, "state_dict": state}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"several state dicts, under model and state_dict: read .*part='model'"):
        load_weights(fresh, tmp_path / "two.pth")
    loads(fresh, open_weights(tmp_path / "two.pth", part="state_dict"), state)
    loads(fresh, open_weights(open_weights({"net": other, "ema": state}), part="ema"), state)
    loads(fresh, {"model": state, "state_dict": dict(state)}, state)
    with pytest.raises(ValueError, match=r"part='modle' is not in this file: it holds model, state_dict"):
        open_weights(tmp_path / "two.pth", part="modle")


def test_an_average_that_cannot_be_read_is_said(fresh: ResNetClassifier, state: State) -> None:
    """torch_ema's state: a list of tensors without names."""
    notes = loads(fresh, {"model": state, "ema": {"shadow_params": [torch.zeros(3)], "decay": 0.9}}, state)
    assert notes[-1] == "ema holds no state dict, so no averaged weights were taken"


def test_values_and_arrays_among_the_tensors_are_read(state: State) -> None:
    file = {key: value.numpy() for key, value in state.items()} | {"epoch": 3, "arch": "resnet"}
    found = unwrap(file)
    assert all(torch.equal(found.state[key], value) for key, value in state.items())
    assert found.notes == ("epoch, arch are no tensor and left out",)


def test_imagenet_weights_in_lightnings_layout_are_those_of_the_file(imagenet_weights: Path, tmp_path: Path) -> None:
    path = imagenet_weights / "resnet18-imagenet.pth"
    content = {f"model.encoder.{key}": value for key, value in torch.load(path).items()}
    torch.save({"state_dict": content, "pytorch-lightning_version": "2.4", "callbacks": {}}, tmp_path / "last.ckpt")
    expected = ResNetBackbone(RESNETS["resnet18"], norm="bn")
    load_weights(expected, path, source="torchvision")
    loads(ResNetBackbone(RESNETS["resnet18"], norm="bn"), tmp_path / "last.ckpt", expected.state_dict())
