"""Non-maximum suppression by torchvision's operator."""

from __future__ import annotations

from torch import Tensor


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression within each group.

    Args:
        boxes: (R, 4) xyxy, pixels.
        scores: (R,).
        groups: (R,) int64, such as classes or levels.
        iou: a box that overlaps a better one of its group by more than this is dropped.

    Returns:
        (S,) int64, indices of the boxes that are left, best first.
    """
    # not at the top: torchvision imports the compiler of torch, which takes longer than torch itself
    from torchvision.ops import batched_nms as operator

    kept: Tensor = operator(boxes, scores, groups, iou)
    return kept
