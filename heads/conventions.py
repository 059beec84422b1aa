"""What detectron2, torchvision and mmdetection do differently, as one record that travels with the weights.

Every field is read by the code named behind it; the default is detectron2's. What is the same in all three is no
field: boxes of real-valued extent, the deltas' weights, log(1000 / 16) as the largest log size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_backbone.errors import InvalidValue


@dataclass(frozen=True)
class Conventions:
    round_anchors: bool = False  # anchors.py: torchvision rounds its cell anchors to whole pixels
    anchor_stride: Literal["level", "grid"] = "level"  # anchors.py: the level's stride, or padded size // grid
    best_anchor_min_iou: float = 0.0  # matching.py: a truth's best anchor is positive if it overlaps this much
    best_anchor_switches: bool = False  # matching.py: and answers for that truth, even where it overlaps another more
    own_padding_px: int = (
        0  # rpn.py: anchors beyond an image's size, rounded up to this, are not learnt from; 0: they are
    )
    rpn_divisor: Literal["configured", "sampled"] = "configured"  # rpn.py: samples_per_image, or what was drawn
    rpn_smooth_l1_beta: float = 0.0  # rpn.py
    min_proposal_px: float = 0.0  # rpn.py: proposals with a side not larger than this are dropped
    bound_shrinking: bool = False  # boxes.py: the log size is bounded below as it is above
    level_ratio_eps: float = 1e-8  # roi_pool.py: added to the region's side over 224 px
    level_log_eps: float = 0.0  # roi_pool.py: added to its logarithm
    roi_aligned: bool = True  # roi_pool.py: half-pixel-correct RoIAlign
    roi_samples: int = 0  # roi_pool.py: samples a bin and axis, 0 adaptive (as many as pixels under the bin)
    box_smooth_l1_beta: float = 0.0  # box_head.py
    min_detection_px: float = 0.0  # box_head.py: detections with a side not larger than this are dropped before NMS
    soft_bitmap_targets: bool = False  # masks.py: bitmaps seen unaligned and as fractions, not cut at one half
    mask_paste: Literal["exact", "integer"] = "exact"  # masks.py: into the box, or into whole pixels around it
    norm_eps: float = 1e-5  # build.py: the backbone's norms

    def __post_init__(self) -> None:
        for name, allowed in (
            ("anchor_stride", ("level", "grid")),
            ("rpn_divisor", ("configured", "sampled")),
            ("mask_paste", ("exact", "integer")),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidValue(f"{name}={getattr(self, name)!r} is unknown: give {allowed[0]!r} or {allowed[1]!r}")
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and value < 0:
                raise InvalidValue(f"{name}={value} must not be negative")


# detectron2 0.6's C4, DC5 and FPN configurations; torchvision 0.13 and later; mmdetection 3's _base_ models
CONVENTIONS: dict[str, Conventions] = {
    "detectron2": Conventions(),
    "torchvision": Conventions(
        round_anchors=True,
        anchor_stride="grid",
        rpn_divisor="sampled",
        rpn_smooth_l1_beta=1 / 9,
        min_proposal_px=1e-3,
        level_ratio_eps=0.0,
        level_log_eps=1e-6,
        roi_aligned=False,
        roi_samples=2,
        box_smooth_l1_beta=1 / 9,
        min_detection_px=1e-2,
        soft_bitmap_targets=True,
        mask_paste="integer",
    ),
    "mmdetection": Conventions(
        best_anchor_min_iou=0.3,
        best_anchor_switches=True,
        own_padding_px=32,
        rpn_divisor="sampled",
        bound_shrinking=True,
        level_ratio_eps=0.25e-6,  # 1e-6 on the side over 56 px
    ),
}
