"""Golden files: what mmdetection 3.3 computes for two narrow R-CNNs, at the tolerances of the files' README.

The files were computed in float32. Ours runs in float64 where possible, so that the differences are the rounding of the
files on every machine. Gradients are compared in float32, because rounding decides ReLUs and assignments: losses agree
within 3e-6 and gradient norms within 6e-3, with and without oneDNN's kernels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from heads import BitMasks, RoiMasks
from heads.conventions import CONVENTIONS
from heads.detector import RCNN
from heads.structures import Targets
from tests.heads.golden import (
    EVERYTHING,
    batch_of,
    build,
    check_detections,
    check_features,
    gradient_norms,
    narrow_recipe,
    proposals_of,
    to_double,
)

MARGIN = 2e-3  # largest distance of a differing pixel's probability from the threshold 0.5
LOSSES = {"loss_rpn_cls": "loss_rpn_cls", "loss_rpn_loc": "loss_rpn_bbox", "loss_cls": "loss_cls"}
LOSSES |= {"loss_box_reg": "loss_bbox", "loss_mask": "loss_mask"}


@pytest.fixture(scope="module", params=["faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"])
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[dict[str, Any], RCNN]:
    """A golden file and our detector with its weights."""
    file = torch.load(shared / "golden" / "mmdet" / f"{request.param}.pt", weights_only=True)
    recipe = narrow_recipe(request.param, keep=(30, 100), norm="bn_eval", conventions=CONVENTIONS["mmdetection"])
    recipe = replace(recipe, box=replace(recipe.box, keep_best=recipe.mask is not None))
    assert recipe.rpn.samples_per_image == EVERYTHING
    return file, build(recipe, file["state_dict"], "mmdetection")


def test_features_equal_mmdetection(golden: tuple[dict[str, Any], RCNN]) -> None:
    check_features(golden[0], to_double(golden[1]), tolerance=1e-4)


def test_proposals_equal_mmdetection(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden
    for proposals, expected in zip(proposals_of(file, to_double(detector)), file["proposals"], strict=True):
        torch.testing.assert_close(proposals.boxes, expected["boxes"].to(proposals.boxes), rtol=0, atol=0.05)
        torch.testing.assert_close(
            proposals.scores.sigmoid(), expected["scores"].to(proposals.scores), rtol=0, atol=1e-3
        )


def test_losses_and_gradients_equal_mmdetection(golden: tuple[dict[str, Any], RCNN]) -> None:
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
    norms = gradient_norms(detector, "mmdetection")
    assert set(norms) == set(file["grad_norms"])
    for name, expected in file["grad_norms"].items():
        assert norms[name] == pytest.approx(expected, rel=1e-2), name


def test_detections_equal_mmdetection(golden: tuple[dict[str, Any], RCNN]) -> None:
    file, detector = golden[0], to_double(golden[1])
    for in_network, in_image, expected in check_detections(file, detector, boxes_px=0.05, scores=1e-3):
        roi_masks = in_network.masks
        if roi_masks is None:
            continue
        assert isinstance(roi_masks, RoiMasks) and isinstance(in_image.masks, BitMasks)
        at_lower_threshold, at_upper_threshold = (
            roi_masks.paste(in_image.boxes, *in_image.masks.bits.shape[1:], threshold=0.5 + offset).bits
            for offset in (-MARGIN, MARGIN)
        )
        expected_bits = torch.from_numpy(np.stack([coco.decode(rle).astype(bool) for rle in expected["masks_rle"]]))
        differing = in_image.masks.bits != expected_bits
        assert int((differing.flatten(1).sum(1) <= 4).sum()) >= 90
        # the other masks differ in at most 18 of more than 10,000 pixels, because of the file's rounding: all of these
        # pixels have probabilities near the threshold
        assert not (differing & ~(at_lower_threshold & ~at_upper_threshold)).any()
