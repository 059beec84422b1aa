"""Weights there and back on the command line, and what it says where it cannot."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import detection as tv
from torchvision.models import resnet18

from heads.build import DETECTORS, assemble, empty_backbone
from heads.files import load_detector
from heads.keymaps import to_layout
from tests.tools.conftest import Said
from tools import convert_weights, predict

Call = Callable[..., Said]


def scrambled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.rand(v.shape) * 0.1 if v.is_floating_point() else v for k, v in state.items()}


def same(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's Mask R-CNN, its 91 logits and their background rows all of different values."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("torchvision") / "maskrcnn.pth"
    state = scrambled(tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict())
    torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    return path


def test_torchvision_to_ours_and_back_is_bit_exact(theirs: Path, tmp_path: Path, call: Call) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    arguments = "--recipe", "maskrcnn_resnet50_fpn", "--source", "torchvision_coco_v1"
    said = call(convert_weights, theirs, ours, *arguments)
    assert said.code == 0 and "our certified file, 90 classes, torchvision_coco_v1" in said.out, said.err
    detector, recipe = load_detector(ours)
    assert (
        recipe.conventions.norm_eps == 0 and detector.class_names[11] == "N/A" and detector.preprocess.resize == "torch"
    )
    said = call(convert_weights, ours, back, "--to", "torchvision")
    assert said.code == 0 and "norms with an epsilon of 0" in said.out, said.err
    assert same(torch.load(theirs, weights_only=True), torch.load(back, weights_only=True))


def test_ours_to_detectron2_to_ours_is_bit_exact(theirs: Path, tmp_path: Path, call: Call) -> None:
    ours, there, back = tmp_path / "ours.pth", tmp_path / "detectron2.pth", tmp_path / "back.pth"
    arguments = "--recipe", "maskrcnn_resnet50_fpn"
    assert call(convert_weights, theirs, ours, *arguments, "--source", "torchvision").code == 0
    said = call(convert_weights, ours, there, "--to", "detectron2")
    assert said.code == 0 and "channel_order rgb" in said.out and "stride on a bottleneck's 3x3" in said.out
    said = call(convert_weights, there, back, *arguments, "--source", "detectron2_rgb")
    assert said.code == 0, said.err
    assert same(load_detector(ours)[0].state_dict(), load_detector(back)[0].state_dict())


def test_detectron2s_pickle_becomes_a_file_that_predicts(tmp_path: Path, call: Call, coco_mini: Path) -> None:
    """Synthetic, in the model zoo's layout: arrays and its author's name, which says that it is BGR."""
    recipe = DETECTORS["faster_rcnn_r18_fpn"]
    state = to_layout(assemble(recipe, 80, empty_backbone(recipe)).state_dict(), "detectron2", {})
    content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "final.pkl").write_bytes(pickle.dumps(content, protocol=2))
    said = call(convert_weights, tmp_path / "final.pkl", tmp_path / "ours.pth", "--recipe", "faster_rcnn_r18_fpn")
    assert said.code == 0, said.err
    assert load_detector(tmp_path / "ours.pth")[0].preprocess.channel_order == "bgr"
    image = sorted((coco_mini / "val2017").glob("*.jpg"))[0]
    assert call(predict, tmp_path / "ours.pth", image, "--out", tmp_path / "seen").code == 0


@pytest.mark.parametrize("to", ["torchvision", "timm", "detectron2", "transformers"])
def test_a_net_is_recognised_and_goes_there_and_back(to: str, tmp_path: Path, call: Call) -> None:
    given = scrambled(resnet18(weights=None).state_dict())
    torch.save(given, tmp_path / "net.pth")
    there, back = tmp_path / "there.pth", tmp_path / "back.pth"
    assert call(convert_weights, tmp_path / "net.pth", there, "--to", to, "--source", "torchvision").code == 0
    source = {"detectron2": "detectron2_rgb"}.get(to, to)
    assert call(convert_weights, there, back, "--to", "torchvision", "--source", source).code == 0
    assert same(given, torch.load(back, weights_only=True))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--source", "torchvision"), "is a whole detector: give --recipe: give one of faster_rcnn_r18_fpn"),
        (("--recipe", "mask_rcnn_r50_fp", "--source", "torchvision"), "did you mean 'mask_rcnn_r50_fpn'"),
        (("--recipe", "mask_rcnn_r50_fpn"), "source='torchvision_coco_v1': RGB, stride on the 3x3, epsilon 0"),
        (("--recipe", "mask_rcnn_r101_fpn", "--source", "torchvision"), "missing .*layer3.6"),
        (("--recipe", "mask_rcnn_r50_fpn", "--source", "timm"), "source='timm' has other names"),
        (("--recipe", "mask_rcnn_r50_fpn", "--source", "torchvision", "--to", "timm"), "--to timm has no detectors"),
    ],
)
def test_what_cannot_be_done_says_why_and_writes_nothing(
    arguments: tuple[str, ...], says: str, theirs: Path, tmp_path: Path, call: Call
) -> None:
    said = call(convert_weights, theirs, tmp_path / "out.pth", *arguments)
    assert said.code == 2 and re.search(says, said.err), said.err
    assert not list(tmp_path.iterdir())


def test_tensors_of_no_known_net_are_refused(tmp_path: Path, call: Call) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}, tmp_path / "net.pth")
    said = call(convert_weights, tmp_path / "net.pth", tmp_path / "out.pth", "--source", "torchvision")
    assert said.code == 2 and "these are the tensors of no net that we know" in said.err
    said = call(convert_weights, tmp_path / "net.pth", tmp_path / "out.onnx")
    assert said.code == 2 and "name it .pth or .safetensors" in said.err
