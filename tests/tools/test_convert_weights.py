"""convert_weights: round trips between projects, and its errors."""

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


def random_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.rand(v.shape) * 0.1 if v.is_floating_point() else v for k, v in state.items()}


def equal(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's Mask R-CNN with 91 classes and random values, also in the rows of the background."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("torchvision") / "maskrcnn.pth"
    state = random_values(tv.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict())
    torch.save({key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}, path)
    return path


def test_torchvision_to_ours_and_back_is_bit_exact(theirs: Path, tmp_path: Path, call: Call) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.pth"
    arguments = "--recipe", "maskrcnn_resnet50_fpn", "--source", "torchvision_coco_v1"
    printed = call(convert_weights, theirs, ours, *arguments)
    assert printed.code == 0 and "certified file, 90 classes, source torchvision_coco_v1" in printed.out, printed.err
    detector, recipe = load_detector(ours)
    assert (
        recipe.conventions.norm_eps == 0 and detector.class_names[11] == "N/A" and detector.preprocess.resize == "torch"
    )
    printed = call(convert_weights, ours, back, "--to", "torchvision")
    assert printed.code == 0 and "norms with an epsilon of 0" in printed.out, printed.err
    assert equal(torch.load(theirs, weights_only=True), torch.load(back, weights_only=True))


def test_ours_to_detectron2_to_ours_is_bit_exact(theirs: Path, tmp_path: Path, call: Call) -> None:
    ours, foreign, back = tmp_path / "ours.pth", tmp_path / "detectron2.pth", tmp_path / "back.pth"
    arguments = "--recipe", "maskrcnn_resnet50_fpn"
    assert call(convert_weights, theirs, ours, *arguments, "--source", "torchvision").code == 0
    printed = call(convert_weights, ours, foreign, "--to", "detectron2")
    assert printed.code == 0 and "channel_order rgb" in printed.out and "stride on a bottleneck's 3x3" in printed.out
    printed = call(convert_weights, foreign, back, *arguments, "--source", "detectron2_rgb")
    assert printed.code == 0, printed.err
    assert equal(load_detector(ours)[0].state_dict(), load_detector(back)[0].state_dict())


def test_a_pickle_of_detectron2_becomes_a_file_that_predicts(tmp_path: Path, call: Call, coco_mini: Path) -> None:
    """Synthetic, in the layout of its model zoo: arrays, and the author, which tells that it is BGR."""
    recipe = DETECTORS["faster_rcnn_r18_fpn"]
    state = to_layout(assemble(recipe, 80, empty_backbone(recipe)).state_dict(), "detectron2", {})
    content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "final.pkl").write_bytes(pickle.dumps(content, protocol=2))
    printed = call(convert_weights, tmp_path / "final.pkl", tmp_path / "ours.pth", "--recipe", "faster_rcnn_r18_fpn")
    assert printed.code == 0, printed.err
    assert load_detector(tmp_path / "ours.pth")[0].preprocess.channel_order == "bgr"
    image = sorted((coco_mini / "val2017").glob("*.jpg"))[0]
    assert call(predict, tmp_path / "ours.pth", image, "--out", tmp_path / "seen").code == 0


@pytest.mark.parametrize("to", ["torchvision", "timm", "detectron2", "transformers"])
def test_a_net_is_recognised_and_converts_to_another_layout_and_back(to: str, tmp_path: Path, call: Call) -> None:
    original = random_values(resnet18(weights=None).state_dict())
    torch.save(original, tmp_path / "net.pth")
    foreign, back = tmp_path / "foreign.pth", tmp_path / "back.pth"
    assert call(convert_weights, tmp_path / "net.pth", foreign, "--to", to, "--source", "torchvision").code == 0
    source = {"detectron2": "detectron2_rgb"}.get(to, to)
    assert call(convert_weights, foreign, back, "--to", "torchvision", "--source", source).code == 0
    assert equal(original, torch.load(back, weights_only=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "torchvision"), r"is a whole detector: give its recipe \(--recipe\), one of faster_rcnn_r18_fpn"),
        (("--recipe", "mask_rcnn_r50_fp", "--source", "torchvision"), "did you mean 'mask_rcnn_r50_fpn'"),
        (("--recipe", "mask_rcnn_r50_fpn"), "source='torchvision_coco_v1': RGB, stride on the 3x3, epsilon 0"),
        (("--recipe", "mask_rcnn_r101_fpn", "--source", "torchvision"), "missing .*layer3.6"),
        (("--recipe", "mask_rcnn_r50_fpn", "--source", "timm"), "source='timm' uses other keys"),
        (
            ("--recipe", "mask_rcnn_r50_fpn", "--source", "torchvision", "--to", "timm"),
            "timm has no detectors: give ours or detectron2",
        ),
    ],
)
def test_a_conversion_that_fails_writes_nothing(
    arguments: tuple[str, ...], message: str, theirs: Path, tmp_path: Path, call: Call
) -> None:
    printed = call(convert_weights, theirs, tmp_path / "out.pth", *arguments)
    assert printed.code == 2 and re.search(message, printed.err), printed.err
    assert not list(tmp_path.iterdir())


def test_tensors_of_no_known_net_are_refused(tmp_path: Path, call: Call) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}, tmp_path / "net.pth")
    printed = call(convert_weights, tmp_path / "net.pth", tmp_path / "out.pth", "--source", "torchvision")
    assert printed.code == 2 and "these tensors belong to no known net" in printed.err
    printed = call(convert_weights, tmp_path / "net.pth", tmp_path / "out.onnx")
    assert printed.code == 2 and "must end in .pth or .safetensors" in printed.err


def test_a_mask_head_is_not_lost_to_a_recipe_without_one(theirs: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "ours.pth"
    printed = call(
        convert_weights, theirs, out, "--recipe", "fasterrcnn_resnet50_fpn", "--source", "torchvision_coco_v1"
    )
    assert printed.code != 0 and "has a mask head (12 tensors" in printed.err and not out.exists()
    suggested = re.search(r"--recipe (\w+)", printed.err)
    assert suggested is not None
    printed = call(convert_weights, theirs, out, "--recipe", suggested[1], "--source", "torchvision_coco_v1")
    assert printed.code == 0, printed.err


def test_what_is_chosen_in_a_wrapped_file_is_printed(tmp_path: Path, call: Call) -> None:
    net = resnet18(num_classes=3).state_dict()
    averaged = {f"module.{key}": value + 1 if value.is_floating_point() else value for key, value in net.items()}
    torch.save({"state_dict": net, "state_dict_ema": averaged}, tmp_path / "last.pth.tar")
    printed = call(convert_weights, tmp_path / "last.pth.tar", tmp_path / "out.pth", "--source", "timm")
    assert "note: averaged (EMA) weights taken, from 'state_dict_ema'" in printed.out, printed.err
    assert "note: prefix 'module.' removed from all keys" in printed.out
    written = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert torch.equal(written["conv1.weight"], averaged["module.conv1.weight"])
