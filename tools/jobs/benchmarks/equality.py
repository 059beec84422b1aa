"""How far two results agree, as sentences for the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heads import boxes as B
from heads.structures import Detections

SAME_PX, SAME_SCORE = 0.01, 1e-4
PARTNER_IOU, PARTNER_SCORE, CONFIDENT = 0.9, 0.05, 0.3


def equal_detections(ours: Sequence[Detections], theirs: Sequence[Detections]) -> tuple[int, int]:
    """Count detections that both have: the same label, corners within 0.01 px, scores within 1e-4.

    Args:
        ours: detections of every image.
        theirs: those of the other.

    Returns:
        How many have a partner, and the number of detections of whoever has more.
    """
    found = total = 0
    for a, b in zip(ours, theirs, strict=True):
        near = (a.boxes[:, None] - b.boxes[None]).abs().amax(dim=2) <= SAME_PX
        near &= (a.scores[:, None] - b.scores[None]).abs() <= SAME_SCORE
        found += _matched(near & (a.labels[:, None] == b.labels[None]))
        total += max(len(a), len(b))
    return found, total


def partners(low: Sequence[Detections], full: Sequence[Detections]) -> tuple[int, int]:
    """Count fp32 detections of score 0.3 or more that have a partner in bf16.

    A partner has the same label, an IoU of at least 0.9 and a score within 0.05.

    Args:
        low: detections of every image, in bf16.
        full: those in fp32.

    Returns:
        How many have one, and how many there are.
    """
    found = total = 0
    for a, b in zip(low, full, strict=True):
        b = b[b.scores >= CONFIDENT]
        near = (B.iou(a.boxes, b.boxes) >= PARTNER_IOU) & ((a.scores[:, None] - b.scores[None]).abs() <= PARTNER_SCORE)
        found += _matched(near & (a.labels[:, None] == b.labels[None]))
        total += len(b)
    return found, total


def _matched(possible: Tensor) -> int:
    """Number of pairs, when each row and each column is used at most once, best first."""
    taken = torch.zeros(possible.shape[1], dtype=torch.bool)
    pairs = 0
    for row in possible:
        free = (row & ~taken).nonzero().flatten()
        if len(free):
            taken[free[0]] = True
            pairs += 1
    return pairs


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of tensors, each relative to the largest absolute value of theirs."""
    return max(
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12))
        for a, b in zip(ours, theirs, strict=True)
    )


def said(what: str, found: int, total: int) -> str:
    """A sentence such as "199 of 200 detections (99.5 %) equal torchvision's"."""
    if not total:
        return f"nothing to compare: none of the {what.split()[0]} was found on either side"
    return f"{found} of {total} {what} ({100 * found / total:.1f} %)"


def loss_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> float:
    """The largest relative difference of losses.

    Args:
        ours: our losses.
        theirs: theirs.
        names: our name -> theirs.

    Returns:
        The difference.
    """
    return max(
        abs(float(loss) - float(theirs[names[name]])) / max(abs(float(theirs[names[name]])), 1e-12)
        for name, loss in ours.items()
    )
