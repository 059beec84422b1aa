"""Optimisers and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tools.config import OptimiserConfig, RunConfig, ScheduleConfig

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def make_optimiser(model: nn.Module, settings: OptimiserConfig, lr: float) -> torch.optim.Optimizer:
    """Trainable parameters only; norms without weight decay."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                (norms if isinstance(module, NORMS) else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": others, "weight_decay": settings.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, betas=(settings.momentum, settings.beta2), fused=True)


@dataclass(frozen=True)
class Schedule:
    """total steps of a run, and the learning rate of each (0-based)."""

    peak_lr: float
    total: int
    warmup: int
    settings: ScheduleConfig

    def lr(self, step: int) -> float:
        lr = self.peak_lr * self._decay(step)
        if step < self.warmup:
            start = self.settings.warmup_factor
            lr *= start + (1 - start) * step / self.warmup
        return lr

    def _decay(self, step: int) -> float:
        if self.settings.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / self.total))
        passed = sum(step >= round(at * self.total) for at in self.settings.decay_at)
        return self.settings.decay_factor**passed


def make_schedule(config: RunConfig, steps_per_epoch: int) -> Schedule:
    """With `auto_scale`, the linear rule (Goyal et al., arXiv:1706.02677): lr grows with the batch, and steps shrink,
    so that the same images are seen."""
    schedule, factor = config.schedule, 1.0
    if schedule.auto_scale:
        factor = config.train.batch_size / schedule.reference_batch
    total = round(schedule.iters / factor) if schedule.iters else math.ceil((schedule.epochs or 0) * steps_per_epoch)
    total = max(1, total)
    return Schedule(config.optimiser.lr * factor, total, min(round(schedule.warmup_iters / factor), total), schedule)
