"""Non-maximum suppression within groups of boxes, such as those of a class or of a level."""

from __future__ import annotations

from torch import Tensor


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression in which only boxes of the same group suppress each other.

    On a CPU this is torchvision's `batched_nms`, which goes through the groups if there are many boxes. On a GPU, where
    every group would be waited for, all boxes are suppressed in one call: each group is moved to a place of its own, in
    float64, in which the move changes no overlap.

    Args:
        boxes: (R, 4) xyxy, pixels, finite.
        scores: (R,).
        groups: (R,) int64, not negative.
        iou: a box is dropped if its IoU with a better one of its group exceeds this, 0 to 1.

    Returns:
        Indices of the boxes that are left, int64, best first.
    """
    # not at the top: torchvision imports the compiler of torch, which takes longer than torch itself
    from torchvision.ops import batched_nms, nms

    if boxes.device.type == "cpu" or not len(boxes):
        kept: Tensor = batched_nms(boxes, scores, groups, iou)
        return kept
    place = groups.double() * (boxes.max() - boxes.min() + 1).double()
    kept = nms(boxes.double() + place[:, None], scores.double(), iou)
    return kept
