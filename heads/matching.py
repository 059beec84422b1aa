"""Matching of anchors and proposals with ground-truth boxes, and sampling of them for the losses.

G ground-truth boxes and A candidates (anchors or proposals) of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
# from torch 2.7 on, nonzero_static runs on GPUs: with a known number of elements the host need not wait
_STATIC = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)


@dataclass(frozen=True)
class SampledRegions:
    """Regions of one image that were sampled for the losses of a stage.

    Attributes:
        boxes: (R, 4) xyxy, pixels.
        labels: (R,) int64, K for background.
        matched: (R,) int64, index of the ground-truth box of each region.
        positives: number of positive regions; they come first.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor
    positives: int

    def foreground(self) -> SampledRegions:
        """The positive regions: the only ones from which an instance head learns."""
        n = self.positives
        return SampledRegions(self.boxes[:n], self.labels[:n], self.matched[:n], n)


def match(
    overlap: Tensor,
    *,
    low: float,
    high: float,
    best_from: float | None = None,
    best_switches: bool = False,
    usable: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Match every candidate with the ground-truth box that it overlaps most.

    Args:
        overlap: (G, A) IoU.
        low: candidates with a smaller IoU are NEGATIVE.
        high: candidates with at least this IoU are POSITIVE; those between low and high are IGNORED.
        best_from: the best candidates of every ground-truth box, ties included, are POSITIVE too, if their IoU is
            positive and at least this. None: they are not.
        best_switches: how those candidates are matched. False, with the box that they overlap most (the `Matcher` of
            detectron2 and torchvision). True, with the box of which they are the best, the last one of several
            (mmdetection's `MaxIoUAssigner`).
        usable: (A,) bool; all other candidates are IGNORED, and are the best of no box. None: all are usable.

    Returns:
        The index of the matched box, (A,) int64, and the role, (A,) int8. Without ground-truth boxes all usable
        candidates are NEGATIVE.
    """
    if usable is not None:
        overlap = torch.where(usable, overlap, -1.0)
    if overlap.shape[0] == 0:
        roles = overlap.new_full((overlap.shape[1],), NEGATIVE, dtype=torch.int8)
        roles = roles if usable is None else torch.where(usable, roles, IGNORED)
        return torch.zeros_like(roles, dtype=torch.int64), roles
    best, matched = overlap.max(dim=0)
    roles = torch.full_like(matched, IGNORED, dtype=torch.int8)
    roles[best < low] = NEGATIVE
    roles[best >= high] = POSITIVE
    if best_from is not None and overlap.shape[1]:
        best_of_box = overlap.max(dim=1, keepdim=True).values
        is_best = (overlap == best_of_box) & (best_of_box > 0) & (best_of_box >= best_from)
        roles[is_best.any(dim=0)] = POSITIVE
        if best_switches:
            order = torch.arange(1, len(overlap) + 1, device=overlap.device)
            last = (is_best * order[:, None]).max(dim=0).values
            matched = torch.where(last > 0, last - 1, matched)
    if usable is not None:
        roles = torch.where(usable, roles, IGNORED)
    return matched, roles


def sample(roles: Sequence[Tensor], count: int, positive_fraction: float) -> list[tuple[Tensor, Tensor]]:
    """Sample positive and negative candidates of a batch at random. A GPU is waited for once.

    Args:
        roles: N of (A,), as `match` returns them.
        count: largest number of samples of an image.
        positive_fraction: largest share of positive ones, 0 to 1; negative ones fill the rest.

    Returns:
        N pairs: indices of the positive and of the negative samples, int64. If all candidates of a role are taken,
        they keep their order and no random numbers are drawn.
    """
    if not roles:
        return []
    masks = [(of_image == POSITIVE, of_image == NEGATIVE) for of_image in roles]
    counts = torch.stack([mask.sum() for pair in masks for mask in pair]).tolist()
    drawn = []
    for (positive, negative), num_positive, num_negative in zip(masks, counts[::2], counts[1::2]):
        positives = min(num_positive, int(count * positive_fraction))
        negatives = min(num_negative, count - positives)
        drawn.append((_draw(positive, num_positive, positives), _draw(negative, num_negative, negatives)))
    return drawn


def _draw(mask: Tensor, total: int, count: int) -> Tensor:
    """Indices of `count` of the `total` candidates of a mask."""
    if mask.device.type == "cpu" or not _STATIC:
        indices = mask.nonzero().flatten()
    else:
        indices = torch.nonzero_static(mask, size=total).flatten()
    if count == total:
        return indices
    return indices[torch.randperm(total, device=indices.device)[:count]]


def mean_over_processes(count: int, device: torch.device) -> Tensor:
    """Average a count over all processes, as the divisor of a summed loss.

    DistributedDataParallel averages gradients over processes. With this divisor, N processes take the same step as one
    process with all their images.

    Args:
        count: the count of this process.
        device: device of the loss.

    Returns:
        The mean count, a scalar tensor. The sum over all processes counts as at least one.
    """
    value = torch.full((), float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        # the minimum is applied to the sum: a process without a positive region must not change the mean
        return value.clamp(min=1) / dist.get_world_size()
    return value.clamp(min=1)
