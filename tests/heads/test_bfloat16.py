"""bfloat16 autocast makes the box loss of torchvision's detectors NaN, and not that of ours.

torchvision appends the ground-truth boxes to the proposals in the proposals' dtype. Under autocast that is bfloat16,
where neighbouring values are 2 px apart from 256 px on. On coco-mini at 384 px, one annotated box of image 540, 1.6 px
wide, becomes 0 px wide when the image is flipped. Its IoU with itself is 0 / 0, which no threshold assigns to the
background, so it is sampled as a positive, and its regression target is NaN. At 256 px, no box of coco-mini becomes
empty.
"""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads

from heads import boxes as B
from heads.box_head import BoxHead, BoxHeadSpec
from heads.conventions import Conventions
from heads.roi_pool import RegionPooler
from heads.roi_stage import BOX_DELTA_WEIGHTS, RoIStage
from heads.structures import Proposals, Targets
from resnet_backbone import FeatureSpec

# image 540 of COCO train2017, short side 384, flipped
SMALL_BOX = torch.tensor([[347.2696533203125, 132.48452758789062, 348.904296875, 134.22833251953125]])
PROPOSAL = torch.tensor([[340.0, 128.0, 356.0, 140.0]])


def test_torchvision_gives_a_small_box_a_nan_target_in_bfloat16() -> None:
    heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100)
    ground_truth = [{"boxes": SMALL_BOX, "labels": torch.tensor([1])}]
    _, _, labels, targets = heads.select_training_samples([PROPOSAL.bfloat16()], ground_truth)
    assert not targets[0][labels[0] > 0].isfinite().all()


def test_our_box_stage_keeps_boxes_and_targets_in_float32_under_autocast() -> None:
    pooler = RegionPooler({"p2": FeatureSpec(4, 4)}, ["p2"], size=7, conventions=Conventions())
    stage = RoIStage(pooler, BoxHead(4, 1, BoxHeadSpec(), Conventions()), BOX_DELTA_WEIGHTS)
    targets = [Targets(SMALL_BOX, torch.tensor([0]))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        samples = stage.assign([Proposals(PROPOSAL, torch.zeros(1))], targets)
        output = stage({"p2": torch.randn(1, 4, 96, 96)}, [samples[0].boxes])
        losses = stage.losses(output, samples, targets)
    assert samples[0].boxes.dtype == torch.float32
    assert (samples[0].labels == 0).any()
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())


def test_containers_refuse_half_precision_boxes_and_decoding_promotes_them() -> None:
    """Together these rule out proposals in half precision."""
    for half in (torch.bfloat16, torch.float16):
        assert B.decode(torch.zeros(1, 4, dtype=half), SMALL_BOX.to(half), BOX_DELTA_WEIGHTS).dtype == torch.float32
        with pytest.raises(ValueError, match="float32 or float64"):
            Proposals(SMALL_BOX.to(half), torch.zeros(1))
