"""Conventions: every field changes a result, and invalid values are refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from heads import BitMasks, Conventions, DetectorRecipe, ImageBatch, ImageSize, PolygonMasks, Targets, build_detector
from heads.masks import polygons_from

OTHER_VALUE: dict[str, Any] = {
    "round_anchors": True,
    "anchor_stride": "grid",
    "roi_aligned": False,
    "roi_samples": 1,
    "best_anchor_min_iou": 0.9,
    "best_anchor_switches": True,
    "own_padding_px": 32,
    "rpn_divisor": "sampled",
    "rpn_smooth_l1_beta": 0.5,
    "min_proposal_px": 40.0,
    "bound_shrinking": True,
    "level_ratio_eps": 1.0,
    "level_log_eps": 2.0,
    "box_smooth_l1_beta": 0.5,
    "min_detection_px": 40.0,
    "soft_bitmap_targets": True,
    "mask_paste": "integer",
    "norm_eps": 0.1,
}


def all_results(recipe: DetectorRecipe, conventions: Conventions) -> list[Tensor]:
    """Losses, proposals, detections, pasted masks and decoded boxes under the conventions."""
    torch.manual_seed(0)
    recipe = replace(
        recipe,
        norm="gn",
        conventions=conventions,
        # P6's anchors fit in the image and its proposals are kept, so that their positions affect the results
        rpn=replace(
            recipe.rpn,
            samples_per_image=10**6,
            keep_after_nms_test=1000,
            anchor_sizes_px=((32,), (32,), (32,), (32,), (40,)),
        ),
        box=replace(recipe.box, samples_per_image=10**6),
    )
    detector = build_detector(recipe, num_classes=2).eval()
    # most of the second image is padding; both boxes of the first image compete for the same anchors
    batch = ImageBatch(torch.randn(2, 3, 64, 160), (ImageSize(64, 160), ImageSize(32, 32)))
    boxes = torch.tensor([[10.0, 5, 60, 50], [12.0, 8, 58, 49]])
    bits = PolygonMasks(tuple(polygons_from([[x1, y1, x2, y1, 35, y2]]) for x1, y1, x2, y2 in boxes.tolist()))
    targets = [
        Targets(boxes, torch.tensor([1, 0]), bits.rasterise(64, 160)),
        Targets(boxes[:0], torch.zeros(0, dtype=torch.int64), BitMasks(torch.zeros(0, 64, 160, dtype=torch.bool))),
    ]
    with torch.no_grad():
        proposals = detector.propose(detector.dense(batch.pixels), batch, detector.rpn.spec.keep_test)
        losses = detector(batch, targets)
        detections = detector.detect(batch)[0][:1]
        assert detections.masks is not None
        pasted = detections.masks.paste(torch.tensor([[3.3, 4.6, 70.2, 60.9]])[: len(detections)], 64, 160)
        detector.box_head.deltas.bias.fill_(-30.0)  # log sizes of -6 after the division by the weights
        shrunken = detector.detect(batch)[0].boxes
    return [*losses.values(), proposals[0].boxes, detections.boxes, pasted.bits, shrunken]


@pytest.mark.parametrize("name", [field.name for field in fields(Conventions)])
def test_every_convention_changes_a_result(name: str, small_recipe: DetectorRecipe) -> None:
    default, other = (
        all_results(small_recipe, conventions)
        for conventions in (Conventions(), replace(Conventions(), **{name: OTHER_VALUE[name]}))
    )
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(default, other))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"anchor_stride": "cell"}, "anchor_stride='cell' is unknown: give 'level' or 'grid'"),
        ({"roi_samples": -1}, "roi_samples=-1 must not be negative"),
        ({"rpn_smooth_l1_beta": -0.1}, "rpn_smooth_l1_beta=-0.1 must not be negative"),
        ({"min_proposal_px": -1.0}, "min_proposal_px=-1.0 must not be negative"),
    ],
)
def test_invalid_conventions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conventions(**values)
