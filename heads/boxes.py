"""Operations on boxes: pure functions, never in half precision.

R boxes are (R, 4) xyxy in pixels, with real-valued extent: a box is x2 - x1 wide. Half precision is promoted to
float32, float64 is kept. Reason: bfloat16 has eight bits of mantissa, so its values between 256 and 512 px are 2 px
apart and a small box there becomes zero wide; `encode` would divide by zero and take a logarithm of the result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .structures import ImageSize

# largest log size delta of detectron2 and torchvision: a decoded box is at most 1000 / 16 times as large as its anchor
MAX_LOG_RATIO = math.log(1000.0 / 16)
HALF = (torch.bfloat16, torch.float16)
BoxWeights = tuple[float, float, float, float]


def promote(values: Tensor) -> Tensor:
    """Convert to float32; float64 is kept.

    Args:
        values: a tensor of any shape and precision.

    Returns:
        The same values in float32 or float64.
    """
    return values if values.dtype == torch.float64 else values.float()


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes.

    Args:
        boxes: (R, 4) xyxy, pixels.

    Returns:
        (R,) square pixels.
    """
    boxes = promote(boxes)
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of all pairs.

    Args:
        a: (R, 4) xyxy, pixels.
        b: (S, 4) xyxy, pixels.

    Returns:
        (R, S), zero for boxes that do not intersect.
    """
    a, b = promote(a), promote(b)
    wh = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])).clamp(min=0)
    intersection = wh[..., 0] * wh[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return torch.where(intersection > 0, intersection / union, intersection.new_zeros(()))


def clip(boxes: Tensor, size: ImageSize) -> Tensor:
    """Clip boxes to an image.

    Args:
        boxes: (R, 4) xyxy, pixels.
        size: the image.

    Returns:
        (R, 4), the part of every box that lies in the image.
    """
    boxes = promote(boxes)
    x = boxes[:, 0::2].clamp(0, size.width)
    y = boxes[:, 1::2].clamp(0, size.height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def larger_than(boxes: Tensor, min_side_px: float) -> Tensor:
    """Find the boxes that exceed a size.

    Args:
        boxes: (R, 4) xyxy, pixels.
        min_side_px: pixels that both sides must exceed; 0 finds the boxes that are not empty.

    Returns:
        (R,) bool.
    """
    boxes = promote(boxes)
    return (boxes[:, 2] - boxes[:, 0] > min_side_px) & (boxes[:, 3] - boxes[:, 1] > min_side_px)


def encode(boxes: Tensor, anchors: Tensor, weights: BoxWeights) -> Tensor:
    """Compute the deltas between anchors and boxes (Ren et al., *Faster R-CNN*, 2015, equation 2).

    Args:
        boxes: (R, 4) xyxy, pixels, with positive sides.
        anchors: (R, 4) xyxy, pixels, with positive sides.
        weights: factors of the deltas of x, y, width and height.

    Returns:
        (R, 4) deltas that `decode` turns back into the boxes.
    """
    boxes, anchors = promote(boxes), promote(anchors)
    anchor_wh, box_wh = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    anchor_xy, box_xy = anchors[:, :2] + 0.5 * anchor_wh, boxes[:, :2] + 0.5 * box_wh
    deltas = torch.cat([(box_xy - anchor_xy) / anchor_wh, torch.log(box_wh / anchor_wh)], dim=1)
    # numbers of the host, column by column: a GPU would wait for a tensor that is made of them
    return torch.stack([column * weight for column, weight in zip(deltas.unbind(1), weights)], dim=1)


def decode(deltas: Tensor, anchors: Tensor, weights: BoxWeights, *, bound_shrinking: bool = False) -> Tensor:
    """Apply deltas to anchors; the inverse of `encode`.

    Args:
        deltas: (R, 4); log sizes are limited to `MAX_LOG_RATIO`.
        anchors: (R, 4) xyxy, pixels.
        weights: factors of the deltas of x, y, width and height, as for `encode`.
        bound_shrinking: limit log sizes to `-MAX_LOG_RATIO` from below too (mmdetection's `delta2bbox`).

    Returns:
        (R, 4) xyxy, pixels.
    """
    deltas, anchors = promote(deltas), promote(anchors)
    deltas = deltas.to(anchors.dtype) if anchors.dtype == torch.float64 else deltas
    wh = anchors[:, 2:] - anchors[:, :2]
    xy = anchors[:, :2] + 0.5 * wh
    dx, dy, dw, dh = (column / weight for column, weight in zip(deltas.unbind(1), weights))
    centre = torch.stack([dx, dy], dim=1) * wh + xy
    lowest = -MAX_LOG_RATIO if bound_shrinking else None
    half = 0.5 * torch.exp(torch.stack([dw, dh], dim=1).clamp(min=lowest, max=MAX_LOG_RATIO)) * wh
    return torch.cat([centre - half, centre + half], dim=1)


def smooth_l1_sum(predicted: Tensor, target: Tensor, beta: float) -> Tensor:
    """Summed smooth L1 loss (Girshick, *Fast R-CNN*, 2015, equation 3).

    Args:
        predicted: a tensor of any shape.
        target: of the same shape.
        beta: error at which the loss changes from quadratic to linear. 0 is the L1 loss; torch's function divides by
            beta, so that case is computed separately.

    Returns:
        The scalar loss, float32 or float64.
    """
    predicted, target = promote(predicted), promote(target)
    if beta == 0:
        return (predicted - target).abs().sum()
    return torch.nn.functional.smooth_l1_loss(predicted, target, beta=beta, reduction="sum")
