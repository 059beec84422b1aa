"""Matching of anchors and proposals with ground-truth boxes, and sampling of them for the losses.

G ground-truth boxes and A candidates (anchors or proposals) of one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


@dataclass(frozen=True)
class SampledRegions:
    """Regions of one image that were sampled for the losses of a stage.

    Attributes:
        boxes: (R, 4) xyxy, pixels.
        labels: (R,) int64, K for background.
        matched: (R,) int64, index of the ground-truth box of each region.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor


def match(
    overlap: Tensor, *, low: float, high: float, best_from: float | None = None, best_switches: bool = False
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

    Returns:
        The index of the matched box, (A,) int64, and the role, (A,) int8. Without ground-truth boxes all candidates are
        NEGATIVE.
    """
    if overlap.shape[0] == 0:
        roles = overlap.new_full((overlap.shape[1],), NEGATIVE, dtype=torch.int8)
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
    return matched, roles


def sample(roles: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Sample positive and negative candidates at random.

    Args:
        roles: (A,), as `match` returns them.
        count: largest number of samples.
        positive_fraction: largest share of positive ones, 0 to 1; negative ones fill the rest.

    Returns:
        Indices of the positive and of the negative samples, int64. If all candidates of a role are taken, they keep
        their order and no random numbers are drawn.
    """
    positive = (roles == POSITIVE).nonzero().flatten()
    negative = (roles == NEGATIVE).nonzero().flatten()
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    return _draw(positive, positives), _draw(negative, negatives)


def _draw(indices: Tensor, count: int) -> Tensor:
    if count == len(indices):
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]


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
    value = torch.tensor(float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        # the minimum is applied to the sum: a process without a positive region must not change the mean
        return value.clamp(min=1) / dist.get_world_size()
    return value.clamp(min=1)
