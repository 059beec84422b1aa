"""Which ground truth an anchor or proposal answers for, and which of them are sampled for the loss.

Glossary: G ground-truth boxes, A candidates (anchors or proposals) of one image.
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
    """overlap: (G, A) IoU -> the best ground truth of each candidate (A,) int64, and its role (A,) int8.

    IoU >= high is POSITIVE, < low NEGATIVE, between them IGNORED. best_from (the RPN): every ground truth also makes
    its best candidates positive, ties included, if they overlap at all and at least this much. They still answer for
    their own best ground truth (detectron2's and torchvision's `Matcher`), or with best_switches for the one whose
    best they are, the last of several (mmdetection's `MaxIoUAssigner`). With G = 0 everything is NEGATIVE.
    """
    if overlap.shape[0] == 0:
        roles = overlap.new_full((overlap.shape[1],), NEGATIVE, dtype=torch.int8)
        return torch.zeros_like(roles, dtype=torch.int64), roles
    best, matched = overlap.max(dim=0)
    roles = torch.full_like(matched, IGNORED, dtype=torch.int8)
    roles[best < low] = NEGATIVE
    roles[best >= high] = POSITIVE
    if best_from is not None and overlap.shape[1]:
        best_of_truth = overlap.max(dim=1, keepdim=True).values
        is_best = (overlap == best_of_truth) & (best_of_truth > 0) & (best_of_truth >= best_from)
        roles[is_best.any(dim=0)] = POSITIVE
        if best_switches:
            order = torch.arange(1, len(overlap) + 1, device=overlap.device)
            last = (is_best * order[:, None]).max(dim=0).values
            matched = torch.where(last > 0, last - 1, matched)
    return matched, roles


def sample(roles: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """roles: (A,) -> indices of sampled positives and negatives, at most count together.

    At most count * positive_fraction positives are drawn, negatives fill the rest. Where nothing has to be left out,
    nothing is random and indices keep their order.
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
    """What to divide a summed loss by: the mean of `count` over all processes, at least one.

    DistributedDataParallel averages gradients over processes; with this divisor, N processes take the step that one
    process would take on all their images together. In a single process it is the count itself.
    """
    value = torch.tensor(float(count), device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        # at least one in the world, not in each process: a process without a positive must not change the mean
        return value.clamp(min=1) / dist.get_world_size()
    return value.clamp(min=1)
