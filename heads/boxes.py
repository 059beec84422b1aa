"""Box mathematics: pure functions, never in half precision.

Glossary: R boxes, xyxy in pixels, of real-valued extent (a box x1..x2 is x2 - x1 wide). Half precision is promoted
to float32, double stays double. Why: bfloat16 has eight bits of mantissa, so between 256 and 512 px its neighbours
lie 2 px apart and a small box there becomes zero wide; `encode` would then take the logarithm of a division by zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .structures import ImageSize

# exp() of more would be a box over 62 times its anchor: detectron2's and torchvision's bound (of 1000 / 16)
MAX_LOG_RATIO = math.log(1000.0 / 16)
BoxWeights = tuple[float, float, float, float]


def promote(values: Tensor) -> Tensor:
    """At least float32."""
    return values if values.dtype == torch.float64 else values.float()


def area(boxes: Tensor) -> Tensor:
    """boxes: (R, 4) -> (R,) square pixels."""
    boxes = promote(boxes)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """a: (R, 4), b: (S, 4) -> (R, S) intersection over union, zero where nothing intersects."""
    a, b = promote(a), promote(b)
    wh = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])).clamp(min=0)
    intersection = wh[..., 0] * wh[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return torch.where(intersection > 0, intersection / union, intersection.new_zeros(()))


def clip(boxes: Tensor, size: ImageSize) -> Tensor:
    """boxes: (R, 4) -> the part of them inside the image."""
    boxes = promote(boxes)
    x = boxes[:, 0::2].clamp(0, size.width)
    y = boxes[:, 1::2].clamp(0, size.height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def larger_than(boxes: Tensor, min_side_px: float) -> Tensor:
    """boxes: (R, 4) -> (R,) bool: both sides exceed min_side_px (0: the box is not empty)."""
    return (boxes[:, 2] - boxes[:, 0] > min_side_px) & (boxes[:, 3] - boxes[:, 1] > min_side_px)


def encode(boxes: Tensor, anchors: Tensor, weights: BoxWeights) -> Tensor:
    """The deltas (R, 4) that bring anchors (R, 4) to boxes (R, 4): Faster R-CNN (Ren et al., 2015), equation 2.

    Both must have positive sides.
    """
    boxes, anchors = promote(boxes), promote(anchors)
    anchor_wh, box_wh = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    anchor_xy, box_xy = anchors[:, :2] + 0.5 * anchor_wh, boxes[:, :2] + 0.5 * box_wh
    scale = boxes.new_tensor(weights)
    return torch.cat([(box_xy - anchor_xy) / anchor_wh, torch.log(box_wh / anchor_wh)], dim=1) * scale


def decode(deltas: Tensor, anchors: Tensor, weights: BoxWeights, *, bound_shrinking: bool = False) -> Tensor:
    """deltas: (R, 4), anchors: (R, 4) -> boxes (R, 4); the inverse of `encode`, log sizes capped at `MAX_LOG_RATIO`
    and, with bound_shrinking, at its negative (mmdetection's `delta2bbox`)."""
    deltas, anchors = promote(deltas), promote(anchors)
    deltas = deltas.to(anchors.dtype) if anchors.dtype == torch.float64 else deltas
    wh = anchors[:, 2:] - anchors[:, :2]
    xy = anchors[:, :2] + 0.5 * wh
    deltas = deltas / deltas.new_tensor(weights)
    centre = deltas[:, :2] * wh + xy
    lowest = -MAX_LOG_RATIO if bound_shrinking else None
    half = 0.5 * torch.exp(deltas[:, 2:].clamp(min=lowest, max=MAX_LOG_RATIO)) * wh
    return torch.cat([centre - half, centre + half], dim=1)


def smooth_l1_sum(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Summed smooth L1 in at least float32; beta 0 is plain L1 (torch divides by beta, so it is its own case)."""
    predicted, target = promote(predicted), promote(target)
    if beta == 0:
        return (predicted - target).abs().sum()
    return torch.nn.functional.smooth_l1_loss(predicted, target, beta=beta, reduction="sum")
