"""Conventions: every field reaches the code that its comment names, and nonsense is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from heads import Conventions, DetectorRecipe, ImageBatch, ImageSize, PolygonMasks, Targets, build_detector
from heads.masks import polygons_from

OTHER: dict[str, Any] = {
    "round_anchors": True,
    "anchor_stride": "grid",
    "roi_aligned": False,
    "roi_samples": 1,
    "rpn_smooth_l1_beta": 0.5,
    "box_smooth_l1_beta": 0.5,
    "min_proposal_px": 40.0,
    "norm_eps": 0.1,
}


def losses_proposals_and_detections(recipe: DetectorRecipe, conventions: Conventions) -> list[Tensor]:
    torch.manual_seed(0)
    recipe = replace(
        recipe,
        norm="gn",
        conventions=conventions,
        # P6's anchors fit in the image and its proposals are kept, so that it matters where they lie
        rpn=replace(
            recipe.rpn,
            samples_per_image=10**6,
            keep_after_nms_test=1000,
            anchor_sizes_px=((32,), (32,), (32,), (32,), (40,)),
        ),
        box=replace(recipe.box, samples_per_image=10**6),
    )
    detector = build_detector(recipe, num_classes=2).eval()
    batch = ImageBatch(torch.randn(1, 3, 64, 160), (ImageSize(64, 160),))
    box = torch.tensor([[10.0, 5, 60, 50]])
    truth = Targets(box, torch.tensor([1]), PolygonMasks((polygons_from([[10, 5, 60, 5, 35, 50]]),)))
    with torch.no_grad():
        proposals = detector.rpn.propose(detector.neck(detector.backbone(batch.pixels)), batch.sizes, (64, 160))
        return [*detector(batch, [truth]).values(), proposals[0].boxes, detector.detect(batch)[0].boxes]


@pytest.mark.parametrize("name", [field.name for field in fields(Conventions)])
def test_every_convention_changes_what_is_computed(name: str, small_recipe: DetectorRecipe) -> None:
    default, other = (
        losses_proposals_and_detections(small_recipe, conventions)
        for conventions in (Conventions(), replace(Conventions(), **{name: OTHER[name]}))
    )
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(default, other))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"anchor_stride": "cell"}, "anchor_stride='cell' is unknown: give 'level' or 'grid'"),
        ({"roi_samples": -1}, "roi_samples=-1 must not be negative"),
        ({"rpn_smooth_l1_beta": -0.1}, "rpn_smooth_l1_beta=-0.1 must not be negative"),
        ({"min_proposal_px": -1.0}, "min_proposal_px=-1.0 must not be negative"),
    ],
)
def test_conventions_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Conventions(**wrong)
