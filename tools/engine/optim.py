"""Optimisers and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tools.config.settings import CommonConfig, OptimiserConfig, ScheduleConfig

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def make_optimiser(model: nn.Module, settings: OptimiserConfig, lr: float) -> torch.optim.Optimizer:
    """Trainable parameters only; norms without weight decay, unless `decay_norms`."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                (norms if isinstance(module, NORMS) else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": others, "weight_decay": settings.weight_decay},
        {"params": norms, "weight_decay": settings.weight_decay if settings.decay_norms else 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=lr, betas=(settings.momentum, settings.beta2), fused=True)


@dataclass(frozen=True)
class Schedule:
    """total steps of a run, and the learning rate of each (0-based), after so many decays on a plateau."""

    peak_lr: float
    total: int
    warmup: int
    settings: ScheduleConfig

    def lr(self, step: int, decays: int = 0) -> float:
        lr = self.peak_lr * self._decay(step, decays)
        if step < self.warmup:
            start = self.settings.warmup_factor
            lr *= start if self.settings.warmup_kind == "constant" else start + (1 - start) * step / self.warmup
        return lr

    def _decay(self, step: int, decays: int) -> float:
        if self.settings.kind == "plateau":
            return self.settings.decay_factor**decays
        if self.settings.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / self.total))
        passed = sum(step >= round(at * self.total) for at in self.settings.decay_at)
        return self.settings.decay_factor**passed


@dataclass
class Plateau:
    """Counts the decays of a learning rate that waits for scores: one after every `patience` of them without a new
    best (section 3.4: "divided by 10 when the error plateaus"); its state goes into the checkpoint."""

    patience: int
    best: float = math.inf
    waited: int = 0
    decays: int = 0

    def see(self, value: float) -> None:
        """A new score, the smaller the better; NaN is never a best."""
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited == self.patience:
            self.decays, self.waited = self.decays + 1, 0

    def load(self, state: Mapping[str, float]) -> None:
        """From a checkpoint; a resumed run's own patience counts."""
        self.best = float(state.get("best", math.inf))
        self.waited, self.decays = int(state.get("waited", 0)), int(state.get("decays", 0))


def make_schedule(config: CommonConfig, steps_per_epoch: int) -> Schedule:
    """With `auto_scale`, the linear rule (Goyal et al., arXiv:1706.02677): lr grows with the batch, and steps shrink,
    so that the same images are seen."""
    schedule, factor = config.schedule, 1.0
    if schedule.auto_scale:
        factor = config.train.batch_size / schedule.reference_batch
    total = round(schedule.iters / factor) if schedule.iters else math.ceil((schedule.epochs or 0) * steps_per_epoch)
    total = max(1, total)
    return Schedule(config.optimiser.lr * factor, total, min(round(schedule.warmup_iters / factor), total), schedule)
