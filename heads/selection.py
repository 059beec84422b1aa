"""From the outputs of the last stage to detections: scores, threshold, decoding, suppression, top-k.

Each step is a function of its own, so that box voting or an ensemble can take the place of one. R regions of one image,
K classes, M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import boxes as B
from .kernels import batched_nms
from .roi_stage import RoIStage, StageOutput
from .structures import Detections, ImageSize


@dataclass(frozen=True)
class Candidates:
    """Pairs of a region and a class with a score above the threshold.

    Attributes:
        region: (M,) int64, index of the region.
        label: (M,) int64.
        scores: (M,).
    """

    region: Tensor
    label: Tensor
    scores: Tensor


def class_scores(outputs: Sequence[StageOutput]) -> list[Tensor]:
    """Softmax over the classes; of several stages that scored the same regions, the mean (Cascade R-CNN).

    Args:
        outputs: one output per stage, for the same number of regions.

    Returns:
        N of (R, K): probabilities of the foreground classes.
    """
    probabilities = [F.softmax(output.logits, dim=1) for output in outputs]
    mean = probabilities[0] if len(probabilities) == 1 else torch.stack(probabilities).mean(0)
    return list(outputs[-1].per_image(mean[:, :-1]))


def above_threshold(scores: Tensor, deltas: Tensor, min_score: float) -> Candidates:
    """Choose the pairs of region and class to decode: a few hundred instead of R * K.

    Args:
        scores: (R, K) probabilities.
        deltas: (R, K, 4).
        min_score: scores must exceed this.

    Returns:
        The candidates, in the order of regions. Regions with values that are not finite have none.
    """
    finite = scores.isfinite().all(1) & deltas.isfinite().all(2).all(1)
    region, label = ((scores > min_score) & finite[:, None]).nonzero().unbind(1)
    return Candidates(region, label, scores[region, label])


def decode_candidates(
    candidates: Candidates, deltas: Tensor, boxes: Tensor, stage: RoIStage, size: ImageSize
) -> Detections:
    """Decode the boxes of candidates and clip them to the image.

    Args:
        candidates: M pairs of region and class.
        deltas: (R, K, 4).
        boxes: (R, 4) xyxy, the regions.
        stage: the stage that computed the deltas.
        size: the image without padding.

    Returns:
        M detections, not sorted; boxes with a side not larger than `Conventions.min_detection_px` are left out.
    """
    region, label = candidates.region, candidates.label
    decoded = B.clip(stage.decode(deltas[region, label], boxes[region]), size)
    detections = Detections(decoded, candidates.scores, label)
    min_side_px = stage.head.conventions.min_detection_px
    return detections[B.larger_than(decoded, min_side_px)] if min_side_px else detections


def suppress(detections: Detections, nms_iou: float) -> Detections:
    """Non-maximum suppression within each class.

    Args:
        detections: in any order.
        nms_iou: a box that overlaps a better one of its class by more than this is dropped.

    Returns:
        The detections that are left, best first.
    """
    return detections[batched_nms(detections.boxes, detections.scores, detections.labels, nms_iou)]


def top_k(detections: Detections, count: int) -> Detections:
    """The best `count` of detections that are sorted, best first."""
    return detections[:count]


def select_detections(outputs: Sequence[StageOutput], stage: RoIStage, sizes: Sequence[ImageSize]) -> list[Detections]:
    """All steps, with the settings of the last stage's head.

    Args:
        outputs: one per stage; boxes are decoded from the last.
        stage: the last stage.
        sizes: N image sizes without padding.

    Returns:
        N detections, best first.
    """
    last, spec, detections = outputs[-1], stage.head.spec, []
    for scores, deltas, boxes, size in zip(class_scores(outputs), last.per_image(last.deltas), last.boxes, sizes):
        candidates = above_threshold(scores, deltas, spec.min_score)
        decoded = decode_candidates(candidates, deltas, boxes, stage, size)
        detections.append(top_k(suppress(decoded, spec.nms_iou), spec.max_detections))
    return detections
