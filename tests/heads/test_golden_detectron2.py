"""Golden files: what detectron2 computes for four narrow R-CNNs, at the tolerances of the files' README.

The nets run in float64. Anchors and ground-truth boxes stay in float32, as in detectron2: their rounding decides which
anchors tie as the best of a ground-truth box.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import mask as coco

from heads.detector import RCNN
from heads.masks import PolygonMasks
from heads.structures import Targets
from tests.heads.golden import (
    batch_of,
    build,
    check_detections,
    check_features,
    gradient_norms,
    narrow_recipe,
    proposals_of,
    to_double,
)

NAMES = ("mask_rcnn_r50_fpn", "faster_rcnn_r50_c4", "mask_rcnn_r50_c4", "faster_rcnn_r50_dc5")
RPN_LOSS_WEIGHT = 1000.0  # in the files' configuration, where all anchors are sampled and the divisor is a million


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[dict[str, Any], RCNN]:
    """A golden file and our detector with its weights."""
    file = torch.load(shared / "golden" / "detectron2" / f"{request.param}.pt", weights_only=True)
    keep = (30, 100) if request.param.endswith("fpn") else (150, 100)
    recipe = narrow_recipe(
        request.param, keep=keep, hidden=32 if request.param.endswith("dc5") else 64, stride_on="1x1"
    )
    return file, to_double(build(recipe, file["state_dict"], "detectron2"))


def test_features_equal_detectron2(golden: tuple[dict[str, Any], RCNN]) -> None:
    check_features(*golden, tolerance=1e-5)


def test_proposals_equal_detectron2(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    for proposals, expected in zip(proposals_of(file, detector), file["proposals"], strict=True):
        torch.testing.assert_close(proposals.boxes, expected["boxes"].to(proposals.boxes), rtol=0, atol=0.02)
        torch.testing.assert_close(proposals.scores, expected["logits"].to(proposals.boxes), rtol=1e-4, atol=1e-4)


def test_losses_and_gradients_equal_detectron2(golden: tuple[dict[str, Any], RCNN]) -> None:
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
    for name, expected in file["losses"].items():
        assert losses[name].item() == pytest.approx(expected, rel=1e-4), name
    torch.stack(list(losses.values())).sum().backward()
    norms = gradient_norms(detector, "detectron2")
    assert set(norms) == set(file["grad_norms"])
    for name, expected in file["grad_norms"].items():
        assert norms[name] == pytest.approx(expected, rel=1e-3), name


def test_detections_equal_detectron2(golden: tuple[dict[str, Any], RCNN]) -> None:
    for _, detections, expected in check_detections(*golden, boxes_px=0.02, scores=1e-4):
        for rle, expected_rle in zip(
            detections.masks.to_rle() if detections.masks else (), expected.get("masks_rle", ()), strict=True
        ):
            assert int((coco.decode(rle) != coco.decode(expected_rle)).sum()) <= 2
