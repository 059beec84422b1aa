"""The oracle: ground truth scores as itself, and each fault that burnt somebody makes its own check fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from heads import images as reading
from heads import predictor
from heads.structures import Detections, ImageSize
from resnet_backbone import build_backbone
from resnet_backbone.weights.files import save_weights
from tests.tools.conftest import Said
from tools import doctor
from tools.config.detection import RunConfig
from tools.config.settings import validate
from tools.doctor import Check, oracle
from tools.evaluation import results as writer


def config_for(images: Path, annotations: Path) -> RunConfig:
    return validate(
        {
            "out": "unused",
            "model": "mask_rcnn_r18_fpn",
            "schedule": {"iters": 1},
            "data": {"val": {"images": str(images), "annotations": str(annotations)}},
            "input": {"short_side_px": [256], "long_side_px": 426, "test_short_side_px": 256},
        },
        RunConfig,
    )


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.fixture
def whole(coco_mini: Path) -> RunConfig:
    return config_for(coco_mini / "val2017", coco_mini / "annotations" / "instances_val2017.json")


@pytest.fixture
def few(coco_mini: Path, tmp_path: Path) -> RunConfig:
    """The first 20 images of coco-mini val, so that each fault costs a second."""
    content = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:20]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path = tmp_path / "few.json"
    path.write_text(json.dumps(content))
    return config_for(coco_mini / "val2017", path)


def test_ground_truth_scores_as_itself_on_all_of_coco_mini_val(whole: RunConfig) -> None:
    checks = oracle(whole)
    assert failed(checks) == set(), checks
    assert {"bbox AP", "segm AP"} <= {check.name for check in checks}


def test_shifted_category_ids_fail_the_category_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = writer.coco_results

    def shifted(image_id: int, found: Detections, ids: Any) -> list[dict[str, Any]]:
        return honest(image_id, found, [*ids[1:], ids[0]])

    monkeypatch.setattr(doctor.writer, "coco_results", shifted)
    assert {"categories", "bbox AP", "segm AP"} <= failed(oracle(few))


def spoil_boxes(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """Faults between the network's frame and the image's: in the predictor's way back."""
    honest = predictor.to_image

    def spoilt(found: Detections, network: ImageSize, image: ImageSize) -> Detections:
        back = honest(found, network, image)
        return replace(back, boxes=fault(back.boxes))

    monkeypatch.setattr(doctor.predictor, "to_image", spoilt)


def test_swapped_axes_fail_the_corner_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_boxes(monkeypatch, lambda boxes: boxes[:, [1, 0, 3, 2]])
    assert {"box corners", "bbox AP"} <= failed(oracle(few))


def test_a_shift_of_half_a_pixel_fails_the_corner_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_boxes(monkeypatch, lambda boxes: boxes + 0.5)
    assert "box corners" in failed(oracle(few))
    assert "box sides" not in failed(oracle(few))


def test_swapped_width_and_height_fail_the_side_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(boxes: torch.Tensor) -> torch.Tensor:
        return torch.cat([boxes[:, :2], boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]).flip(1)], dim=1)

    spoil_boxes(monkeypatch, swapped)
    assert failed(oracle(few)) >= {"box sides", "bbox AP"}
    assert "box corners" not in failed(oracle(few))


def test_masks_shifted_by_a_pixel_fail_the_mask_score(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = predictor.to_image

    def spoilt(found: Detections, network: ImageSize, image: ImageSize) -> Detections:
        back = honest(found, network, image)
        return replace(back, masks=type(back.masks)(back.masks.bits.roll(1, dims=2)))  # type: ignore[union-attr,call-arg]

    monkeypatch.setattr(doctor.predictor, "to_image", spoilt)
    assert failed(oracle(few)) == {"segm AP"}


def test_an_ignored_orientation_fails_the_image_check(
    few: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera's JPEG: stored on its side, with an EXIF tag that says so; annotations are for the upright picture."""
    assert few.data.val is not None
    content = json.loads(few.data.val.annotations.read_text())
    folder = tmp_path / "turned"
    folder.mkdir()
    for entry in content["images"]:
        with Image.open(few.data.val.images / entry["file_name"]) as image:
            exif = Image.Exif()
            exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
            image.convert("RGB").rotate(90, expand=True).save(folder / entry["file_name"], exif=exif)
    turned = config_for(folder, few.data.val.annotations)
    assert failed(oracle(turned)) == set()

    def sideways(path: Path) -> Any:
        with Image.open(path) as image:
            return reading.np.asarray(image.convert("RGB"))

    monkeypatch.setattr(doctor.loader, "read_image", sideways)
    assert {"images", "objects"} <= failed(oracle(turned))


def unwrapped(said: Said) -> str:
    """Without the borders and spaces of the tables, which break lines anywhere."""
    return re.sub(r"[\s│┃]", "", said.out)


def test_doctor_weights_prints_all_that_a_file_says_of_itself_and_finds_an_edit(
    tmp_path: Path, call: Callable[..., Said]
) -> None:
    net = build_backbone("resnet18", norm="bn", frozen_stages=0)
    save_weights(net, tmp_path / "net.pth", source="a test")
    said = call(doctor, "weights", tmp_path / "net.pth")
    assert said.code == 0 and "11.2 million values" in said.out, said.out
    facts = ("atest", "BasicBlock", "stride_on3x3", "channel_orderrgb", "0.485", "epsilon1e-05", "c4,c5answer")
    assert all(fact in unwrapped(said) for fact in facts)
    content: Any = torch.load(tmp_path / "net.pth", weights_only=True)
    content["model"]["layer4.1.conv2.weight"][0, 0, 0, 0] += 1
    torch.save(content, tmp_path / "edited.pth")
    said = call(doctor, "weights", tmp_path / "edited.pth")
    assert said.code == 1 and "NO" in said.out and "layer4.1.conv2.weight" in unwrapped(said)


def test_doctor_weights_says_what_names_leave_open(tmp_path: Path, call: Callable[..., Said]) -> None:
    torch.save(build_backbone("resnet18", norm="bn", frozen_stages=0).state_dict(), tmp_path / "net.pth")
    said = call(doctor, "weights", tmp_path / "net.pth")
    assert said.code == 0 and "undecided, give source=: torchvision (RGB" in said.out
    assert "mmdetection_caffe(BGR" in unwrapped(said)
