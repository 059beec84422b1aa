"""What detectron2, torchvision and mmdetection do differently, as one record that travels with the weights.

What all three do in the same way is not a field: boxes of real-valued extent, the weights of the deltas, and
log(1000 / 16) as the largest log size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_backbone.errors import InvalidValue


@dataclass(frozen=True)
class Conventions:
    """Details in which the projects differ; the defaults are detectron2's.

    Attributes:
        round_anchors: round the anchors of a cell to whole pixels. Read by `anchors.py`; torchvision needs it.
        anchor_stride: distance between the anchors of neighbouring cells: "level", the stride of the level, or "grid",
            the padded image size // the size of the feature map, pixels. Read by `anchors.py`; torchvision needs
            "grid".
        best_anchor_min_iou: the best anchors of a ground-truth box are positive if their IoU with it is positive and at
            least this, 0 to 1. Read by `rpn.py`; mmdetection needs 0.3.
        best_anchor_switches: the best anchors of a ground-truth box are matched with that box, even if they overlap
            another one more. Read by `rpn.py` and `roi_stage.py`; mmdetection needs it.
        own_padding_px: anchors outside the image, its sides rounded up to a multiple of this number of pixels, take no
            part in the losses; 0 uses all anchors. Read by `rpn.py` and `anchors.py`; mmdetection needs 32.
        rpn_divisor: the summed losses of the RPN are divided by "configured", the images times
            `RPNSpec.samples_per_image`, or by "sampled", the number of anchors that were sampled. Read by `rpn.py`;
            torchvision and mmdetection need "sampled".
        rpn_smooth_l1_beta: beta of the smooth L1 loss of the RPN's deltas; 0 is L1. Read by `rpn.py`; torchvision needs
            1 / 9.
        min_proposal_px: proposals need both sides larger than this, pixels. Read by `rpn.py`; torchvision needs 0.001.
        bound_shrinking: limit the log size of deltas from below as from above. Read by `rpn.py` and `roi_stage.py`;
            mmdetection needs it.
        level_ratio_eps: added to sqrt(area) / 224 px before its logarithm chooses the level of a region. Read by
            `roi_pool.py`; torchvision needs 0, mmdetection 0.25e-6.
        level_log_eps: added to that logarithm. Read by `roi_pool.py`; torchvision needs 1e-6.
        roi_aligned: RoIAlign shifts regions by half a pixel, which is the correct position. Read by `roi_pool.py`;
            torchvision needs False.
        roi_samples: samples of RoIAlign per bin and axis; 0 takes as many as there are cells under the bin. Read by
            `roi_pool.py`; torchvision needs 2.
        box_smooth_l1_beta: beta of the smooth L1 loss of the box head's deltas; 0 is L1. Read by `roi_stage.py`;
            torchvision needs 1 / 9.
        min_detection_px: detections need both sides larger than this before non-maximum suppression, pixels; 0 keeps
            all. Read by `selection.py`; torchvision needs 0.01.
        soft_bitmap_targets: mask targets from bitmaps are fractions of an unaligned RoIAlign, instead of an aligned one
            with a threshold of 0.5. Read by `mask_head.py` and `masks.py`; torchvision needs it.
        mask_paste: paste masks into their exact box ("exact"), or into the whole pixels around it ("integer"). Read by
            `mask_head.py` and `masks.py`; torchvision needs "integer".
        norm_eps: epsilon of the backbone's norms. Read by `build.py`; torchvision's first detectors need 0.

    Raises:
        InvalidValue: a value that no code supports.
    """

    round_anchors: bool = False
    anchor_stride: Literal["level", "grid"] = "level"
    best_anchor_min_iou: float = 0.0
    best_anchor_switches: bool = False
    own_padding_px: int = 0
    rpn_divisor: Literal["configured", "sampled"] = "configured"
    rpn_smooth_l1_beta: float = 0.0
    min_proposal_px: float = 0.0
    bound_shrinking: bool = False
    level_ratio_eps: float = 1e-8
    level_log_eps: float = 0.0
    roi_aligned: bool = True
    roi_samples: int = 0
    box_smooth_l1_beta: float = 0.0
    min_detection_px: float = 0.0
    soft_bitmap_targets: bool = False
    mask_paste: Literal["exact", "integer"] = "exact"
    norm_eps: float = 1e-5

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


# of detectron2 0.6's C4, DC5 and FPN configurations, torchvision 0.13 and later, and mmdetection 3's _base_ models
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
        level_ratio_eps=0.25e-6,  # 1e-6 is added to sqrt(area) / 56 px
    ),
}
