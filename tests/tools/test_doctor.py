"""doctor: ground truth scores 1 as a prediction, every known kind of error fails a check, and weight files."""

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
from heads.build import DETECTORS, assemble, empty_backbone
from heads.files import save_detector
from heads.masks import BitMasks
from heads.structures import Detections, ImageSize
from resnet_backbone import build_backbone
from resnet_backbone.build import net_content, save_weights
from resnet_backbone.weights.read import read_file, save_atomically
from tests.tools.conftest import Said
from tools import doctor as command
from tools.config.detection import RunConfig
from tools.config.settings import validate
from tools.data import loader
from tools.evaluation import results as writer
from tools.jobs import doctor
from tools.jobs.doctor import Check, check_data


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


@pytest.fixture(scope="module")
def certified_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certified") / "detector.safetensors"
    recipe = replace(DETECTORS["faster_rcnn_r18_fpn"], norm="bn", frozen_stages=0, pyramid_channels=16)
    save_detector(assemble(recipe, 3, empty_backbone(recipe)), recipe, path, source="a test")
    return path


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.fixture
def whole(coco_mini: Path) -> RunConfig:
    return config_for(coco_mini / "val2017", coco_mini / "annotations" / "instances_val2017.json")


@pytest.fixture
def few(coco_mini: Path, tmp_path: Path) -> RunConfig:
    """The first 20 images of coco-mini val, for speed."""
    content = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:20]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path = tmp_path / "few.json"
    path.write_text(json.dumps(content))
    return config_for(coco_mini / "val2017", path)


def test_ground_truth_passes_all_checks_on_coco_mini_val(whole: RunConfig) -> None:
    checks = check_data(whole)
    assert failed(checks) == set(), checks
    assert {"bbox AP", "segm AP"} <= {check.name for check in checks}


def test_shifted_category_ids_fail_the_category_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = writer.coco_results

    def shifted(image_id: int, detections: Detections, ids: Any) -> list[dict[str, Any]]:
        return correct(image_id, detections, [*ids[1:], ids[0]])

    monkeypatch.setattr(doctor.result_writer, "coco_results", shifted)
    assert {"categories", "bbox AP", "segm AP"} <= failed(check_data(few))


def change_boxes(monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    """Apply an error to the boxes after the predictor's resize to image scale."""
    correct = predictor.to_image

    def wrong(detections: Detections, network: ImageSize, image: ImageSize) -> Detections:
        resized = correct(detections, network, image)
        return replace(resized, boxes=error(resized.boxes))

    monkeypatch.setattr(doctor.predictor, "to_image", wrong)


def test_swapped_axes_fail_the_corner_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    change_boxes(monkeypatch, lambda boxes: boxes[:, [1, 0, 3, 2]])
    assert {"box corners", "bbox AP"} <= failed(check_data(few))


def test_a_shift_of_half_a_pixel_fails_the_corner_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    change_boxes(monkeypatch, lambda boxes: boxes + 0.5)
    assert "box corners" in failed(check_data(few))
    assert "box sides" not in failed(check_data(few))


def test_swapped_width_and_height_fail_the_side_check(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(boxes: torch.Tensor) -> torch.Tensor:
        return torch.cat([boxes[:, :2], boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]).flip(1)], dim=1)

    change_boxes(monkeypatch, swapped)
    assert failed(check_data(few)) >= {"box sides", "bbox AP"}
    assert "box corners" not in failed(check_data(few))


def test_masks_shifted_by_a_pixel_fail_the_mask_score(few: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = predictor.to_image

    def wrong(detections: Detections, network: ImageSize, image: ImageSize) -> Detections:
        resized = correct(detections, network, image)
        if not isinstance(resized.masks, BitMasks):  # the doctor takes boxes and masks through it separately
            return resized
        return replace(resized, masks=BitMasks(resized.masks.bits.roll(1, dims=2)))

    monkeypatch.setattr(doctor.predictor, "to_image", wrong)
    assert failed(check_data(few)) == {"segm AP"}


def test_an_ignored_orientation_fails_the_image_check(
    few: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JPEGs as from a camera: stored rotated, with an EXIF orientation; annotations are for the upright image."""
    assert few.data.val is not None
    content = json.loads(few.data.val.annotations.read_text())
    folder = tmp_path / "turned"
    folder.mkdir()
    for entry in content["images"]:
        with Image.open(few.data.val.images / entry["file_name"]) as image:
            exif = Image.Exif()
            exif[0x0112] = 6  # upright after a rotation by 90 degrees clockwise
            image.convert("RGB").rotate(90, expand=True).save(folder / entry["file_name"], exif=exif)
    turned = config_for(folder, few.data.val.annotations)
    assert failed(check_data(turned)) == set()

    def sideways(path: Path, max_pixels: int | None = None) -> Any:
        with Image.open(path) as image:
            return reading.np.asarray(image.convert("RGB"))

    monkeypatch.setattr(loader, "read_image", sideways)
    assert {"images", "objects"} <= failed(check_data(turned))


def unwrapped(printed: Said) -> str:
    """The output without the borders and spaces of tables, in which lines break anywhere."""
    return re.sub(r"[\s│┃]", "", printed.out)


def test_doctor_weights_describes_a_certified_file_and_finds_an_edit(tmp_path: Path, call: Callable[..., Said]) -> None:
    net = build_backbone("resnet18", norm="bn", frozen_stages=0)
    save_weights(net, tmp_path / "net.pth", source="a test")
    printed = call(command, "weights", tmp_path / "net.pth")
    assert printed.code == 0 and "11.2 million values" in printed.out, printed.out
    facts = ("atest", "BasicBlock", "stride_on3x3", "channel_orderrgb", "0.485", "epsilon1e-05", "c4,c5areascertified")
    assert all(fact in unwrapped(printed) for fact in facts)
    content: Any = torch.load(tmp_path / "net.pth", weights_only=True)
    content["model"]["layer4.1.conv2.weight"][0, 0, 0, 0] += 1
    torch.save(content, tmp_path / "edited.pth")
    printed = call(command, "weights", tmp_path / "edited.pth")
    assert printed.code == 1 and "NO" in printed.out and "layer4.1.conv2.weight" in unwrapped(printed)


def test_doctor_weights_finds_an_edited_detector(
    certified_detector: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    printed = call(command, "weights", certified_detector)
    assert printed.code == 0 and printed.out.count(" yes ") == 2
    content: Any = read_file(certified_detector)
    content["model"]["box_head.logits.bias"] = content["model"]["box_head.logits.bias"] + 1
    save_atomically(content, tmp_path / "edited.safetensors")
    printed = call(command, "weights", tmp_path / "edited.safetensors")
    assert printed.code == 1 and "box_head.logits.bias" in unwrapped(printed)


def test_doctor_weights_reports_no_check_of_a_file_without_a_certificate(
    tmp_path: Path, call: Callable[..., Said]
) -> None:
    net = build_backbone("resnet18", norm="bn", frozen_stages=0)
    save_atomically(net_content(net, source="a test"), tmp_path / "last.pt")
    printed = call(command, "weights", tmp_path / "last.pt")
    assert printed.code == 0 and "none: its tensors and outputs are not checked" in printed.out
    assert "passed" not in printed.out and " yes " not in printed.out and "SHA" not in printed.out


def test_doctor_weights_lists_the_sources_that_keys_do_not_tell_apart(
    tmp_path: Path, call: Callable[..., Said]
) -> None:
    torch.save(build_backbone("resnet18", norm="bn", frozen_stages=0).state_dict(), tmp_path / "net.pth")
    printed = call(command, "weights", tmp_path / "net.pth")
    assert printed.code == 0 and "ambiguous, give source=: torchvision (RGB" in printed.out
    assert "mmdetection_caffe(BGR" in unwrapped(printed)
