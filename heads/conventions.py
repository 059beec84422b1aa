"""What detectron2, torchvision and mmdetection do differently, as one record that travels with the weights.

Every field is read by the code named behind it; the default is detectron2's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Conventions:
    round_anchors: bool = False  # anchors.py: torchvision rounds its cell anchors to whole pixels
    anchor_stride: Literal["level", "grid"] = "level"  # anchors.py: the level's stride, or padded size // grid
    roi_aligned: bool = True  # roi_pool.py: half-pixel-correct RoIAlign
    roi_samples: int = 0  # roi_pool.py: samples a bin and axis, 0 adaptive (as many as pixels under the bin)
    rpn_smooth_l1_beta: float = 0.0  # rpn.py
    box_smooth_l1_beta: float = 0.0  # box_head.py
    min_proposal_px: float = 0.0  # rpn.py: proposals with a side not larger than this are dropped
    norm_eps: float = 1e-5  # build.py: the backbone's norms

    def __post_init__(self) -> None:
        if self.anchor_stride not in ("level", "grid"):
            raise ValueError(f"anchor_stride={self.anchor_stride!r} is unknown: give 'level' or 'grid'")
        for name in ("roi_samples", "rpn_smooth_l1_beta", "box_smooth_l1_beta", "min_proposal_px"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
