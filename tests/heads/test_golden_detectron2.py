"""Golden files: what detectron2 itself computes for four shrunken R-CNNs, at the tolerances of the files' README.

The nets run in float64, anchors and truths stay in float32, where detectron2 keeps them: which anchors tie for a
truth's best hangs on their rounding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import mask as coco

from heads.detector import RCNN
from heads.masks import PolygonMasks
from heads.predictor import to_image
from heads.structures import ImageSize, Targets
from resnet_backbone import Preprocess
from tests.heads.golden import batch_of, build, gradient_norms, shrunken

MSRA = Preprocess(channel_order="bgr", value_range=255, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
NAMES = ("mask_rcnn_r50_fpn", "faster_rcnn_r50_c4", "mask_rcnn_r50_c4", "faster_rcnn_r50_dc5")
RPN_LOSS_WEIGHT = 1000.0  # of the files' configuration: with every anchor sampled the divisor is a million


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[dict[str, Any], RCNN]:
    file = torch.load(shared / "golden" / "detectron2" / f"{request.param}.pt", weights_only=True)
    keep = (30, 100) if request.param.endswith("fpn") else (150, 100)
    recipe = shrunken(request.param, keep=keep, hidden=32 if request.param.endswith("dc5") else 64, stride_on="1x1")
    pad = 32 if recipe.neck == "fpn" else 1
    detector = build(recipe, file["state_dict"], "detectron2", replace(MSRA, pad_to_multiple_px=pad))
    detector.double().rpn.anchors.float()
    return file, detector


def test_features(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    with torch.inference_mode():
        levels = detector.neck(detector.backbone(batch_of(file, detector).pixels))
    wanted = {name.replace("res", "c"): value for name, value in file["features"].items()}
    assert list(levels) == list(wanted)
    for level, want in wanted.items():
        found = levels[level][:, : want.shape[1]]
        assert float((found - want).abs().max() / want.abs().max()) < 1e-5, level


def test_proposals(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    batch = batch_of(file, detector)
    with torch.inference_mode():
        levels = detector.neck(detector.backbone(batch.pixels))
        proposals = detector.rpn.propose(levels, batch.sizes, tuple(batch.pixels.shape[-2:]))
    for found, want in zip(proposals, file["proposals"], strict=True):
        torch.testing.assert_close(found.boxes, want["boxes"].to(found.boxes), rtol=0, atol=0.02)
        torch.testing.assert_close(found.scores, want["logits"].to(found.boxes), rtol=1e-4, atol=1e-4)


def test_losses_and_gradients(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    detector.train().zero_grad()
    targets = [
        Targets(
            boxes.float(), labels, PolygonMasks(tuple(tuple(p.numpy().reshape(-1, 2) for p in ps) for ps in outlines))
        )
        for boxes, labels, outlines in zip(file["gt_boxes"], file["gt_labels"], file["gt_polygons"], strict=True)
    ]
    losses = detector(batch_of(file, detector), targets)
    losses = {name: loss * (RPN_LOSS_WEIGHT if "rpn" in name else 1.0) for name, loss in losses.items()}
    assert set(losses) == set(file["losses"])
    for name, want in file["losses"].items():
        assert losses[name].item() == pytest.approx(want, rel=1e-4), name
    torch.stack(list(losses.values())).sum().backward()
    found = gradient_norms(detector, "detectron2")
    assert set(found) == set(file["grad_norms"])
    for name, want in file["grad_norms"].items():
        assert found[name] == pytest.approx(want, rel=1e-3), name


def test_detections(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    batch = batch_of(file, detector)
    with torch.inference_mode():
        detections = detector.eval().detect(batch)
    for found, network, (height, width), want in zip(
        detections, batch.sizes, file["image_sizes"], file["detections"], strict=True
    ):
        image = ImageSize(height=height, width=width)
        found = to_image(found, network, image)
        assert torch.equal(found.labels, want["labels"])
        torch.testing.assert_close(found.boxes, want["boxes"].to(found.boxes), rtol=0, atol=0.02)
        torch.testing.assert_close(found.scores, want["scores"].to(found.boxes), rtol=0, atol=1e-4)
        for mine, its in zip(found.masks.to_rle() if found.masks else (), want.get("masks_rle", ()), strict=True):
            assert int((coco.decode(mine) != coco.decode(its)).sum()) <= 2
