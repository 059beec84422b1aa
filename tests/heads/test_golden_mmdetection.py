"""Golden files: what mmdetection 3.3 computes for two shrunken R-CNNs, at the tolerances of their README.

The files are float32 throughout. Ours runs in float64 where it can, so that what is left is the file's own rounding on
every machine. Gradients go through ReLUs and assignments that rounding decides, so they are compared in float32: losses
agree within 3e-6, gradient norms within 6e-3, with oneDNN's kernels and without.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from heads.conventions import CONVENTIONS
from heads.detector import RCNN
from heads.masks import BitMasks, RoiMasks
from heads.structures import Targets
from tests.heads.golden import (
    EVERYTHING,
    batch_of,
    build,
    check_detections,
    check_features,
    exact,
    gradient_norms,
    proposals_of,
    shrunken,
)

MARGIN = 2e-3  # of a pixel's probability to the cut at one half
LOSSES = {"loss_rpn_cls": "loss_rpn_cls", "loss_rpn_loc": "loss_rpn_bbox", "loss_cls": "loss_cls"}
LOSSES |= {"loss_box_reg": "loss_bbox", "loss_mask": "loss_mask"}


@pytest.fixture(scope="module", params=["faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"])
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[dict[str, Any], RCNN]:
    file = torch.load(shared / "golden" / "mmdet" / f"{request.param}.pt", weights_only=True)
    recipe = shrunken(request.param, keep=(30, 100), norm="bn_eval", conventions=CONVENTIONS["mmdetection"])
    recipe = replace(recipe, box=replace(recipe.box, keep_best=recipe.mask is not None))
    assert recipe.rpn.samples_per_image == EVERYTHING
    return file, build(recipe, file["state_dict"], "mmdetection")


def test_features(golden: tuple[dict[str, Any], RCNN]) -> None:
    check_features(golden[0], exact(golden[1]), tolerance=1e-4)


def test_proposals(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    for found, want in zip(proposals_of(file, exact(detector)), file["proposals"], strict=True):
        torch.testing.assert_close(found.boxes, want["boxes"].to(found.boxes), rtol=0, atol=0.05)
        torch.testing.assert_close(found.scores.sigmoid(), want["scores"].to(found.scores), rtol=0, atol=1e-3)


def test_losses_and_gradients(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    detector.float().train().zero_grad()
    targets = [
        Targets(boxes, labels, BitMasks(torch.from_numpy(np.stack([coco.decode(rle).astype(bool) for rle in rles]))))
        for boxes, labels, rles in zip(file["gt_boxes"], file["gt_labels"], file["gt_masks_rle"], strict=True)
    ]
    losses = detector(batch_of(file, detector), targets)
    assert {LOSSES[name] for name in losses} == set(file["losses"])
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(file["losses"][LOSSES[name]], rel=1e-3), name
    torch.stack(list(losses.values())).sum().backward()
    found = gradient_norms(detector, "mmdetection")
    assert set(found) == set(file["grad_norms"])
    for name, want in file["grad_norms"].items():
        assert found[name] == pytest.approx(want, rel=1e-2), name


def test_detections(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden[0], exact(golden[1])
    for in_boxes, found, want in check_detections(file, detector, boxes_px=0.05, scores=1e-3):
        roi_masks = in_boxes.masks
        if roi_masks is None:
            continue
        assert isinstance(roi_masks, RoiMasks) and isinstance(found.masks, BitMasks)
        loose, tight = (
            roi_masks.paste(found.boxes, *found.masks.bits.shape[1:], threshold=0.5 + d).bits for d in (-MARGIN, MARGIN)
        )
        wanted = torch.from_numpy(np.stack([coco.decode(rle).astype(bool) for rle in want["masks_rle"]]))
        differ = found.masks.bits != wanted
        assert int((differ.flatten(1).sum(1) <= 4).sum()) >= 90
        # the rest: 18 px at most, of masks of over ten thousand, by the file's rounding: each of these pixels'
        # probability lies at the cut
        assert not (differ & ~(loose & ~tight)).any()
