"""Golden files: what detectron2 itself computes for four shrunken R-CNNs, at the tolerances of the files' README.

The nets run in float64, anchors and truths stay in float32, where detectron2 keeps them: which anchors tie for a
truth's best hangs on their rounding.
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
    exact,
    gradient_norms,
    proposals_of,
    shrunken,
)

NAMES = ("mask_rcnn_r50_fpn", "faster_rcnn_r50_c4", "mask_rcnn_r50_c4", "faster_rcnn_r50_dc5")
RPN_LOSS_WEIGHT = 1000.0  # of the files' configuration: with every anchor sampled the divisor is a million


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[dict[str, Any], RCNN]:
    file = torch.load(shared / "golden" / "detectron2" / f"{request.param}.pt", weights_only=True)
    keep = (30, 100) if request.param.endswith("fpn") else (150, 100)
    recipe = shrunken(request.param, keep=keep, hidden=32 if request.param.endswith("dc5") else 64, stride_on="1x1")
    return file, exact(build(recipe, file["state_dict"], "detectron2"))


def test_features(golden: tuple[dict[str, Any], RCNN]) -> None:
    check_features(*golden, tolerance=1e-5)


def test_proposals(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    for found, want in zip(proposals_of(file, detector), file["proposals"], strict=True):
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
    for _, found, want in check_detections(*golden, boxes_px=0.02, scores=1e-4):
        for mine, its in zip(found.masks.to_rle() if found.masks else (), want.get("masks_rle", ()), strict=True):
            assert int((coco.decode(mine) != coco.decode(its)).sum()) <= 2
