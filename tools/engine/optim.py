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
    """Make the optimiser of a model.

    Args:
        model: the model; parameters that do not train are left out.
        settings: kind and hyper-parameters. Parameters of norms have no weight decay, unless `decay_norms` is set.
        lr: the initial learning rate; the training loop sets it anew at every step.

    Returns:
        SGD or AdamW, fused, with at most two groups of parameters.
    """
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
        sgd = torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, fused=True)
        if settings.momentum:
            # torch makes them in the first step, and leaves them without values if that step is skipped
            for parameter in (*others, *norms):
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, lr=lr, betas=(settings.momentum, settings.beta2), fused=True)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step.

    Attributes:
        peak_lr: the learning rate after warm-up.
        total: steps of the run.
        warmup: steps of warm-up.
        settings: kind and parameters of the schedule.
    """

    peak_lr: float
    total: int
    warmup: int
    settings: ScheduleConfig

    def lr(self, step: int, decays: int = 0) -> float:
        """The learning rate of a step.

        Args:
            step: index of the step, from 0.
            decays: how often `Plateau` lowered the learning rate so far; read by `kind="plateau"` only.

        Returns:
            The learning rate.
        """
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
    """Counts how often the learning rate was lowered because scores did not improve.

    As in He et al., *Deep Residual Learning* (2015), section 3.4: "divided by 10 when the error plateaus". The decision
    is that of torch's `ReduceLROnPlateau` with a threshold of 0 and a patience of `patience - 1`. The attributes are
    part of a checkpoint.

    Attributes:
        patience: scores in a row without a new best that lower the learning rate.
        best: the smallest score so far.
        waited: scores since the best, or since the last decay.
        decays: how often the learning rate was lowered.
    """

    patience: int
    best: float = math.inf
    waited: int = 0
    decays: int = 0

    def see(self, value: float) -> None:
        """Take a new score into account.

        Args:
            value: the score, the smaller the better; NaN is never a new best.
        """
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited == self.patience:
            self.decays, self.waited = self.decays + 1, 0

    def load(self, state: Mapping[str, float]) -> None:
        """Restore the state from a checkpoint.

        Args:
            state: the attributes that were saved, all but `patience`; a missing one has its initial value.
        """
        self.best = float(state.get("best", math.inf))
        self.waited, self.decays = int(state.get("waited", 0)), int(state.get("decays", 0))


def make_schedule(config: CommonConfig, steps_per_epoch: int) -> Schedule:
    """Make the schedule of a run.

    With `schedule.auto_scale`, the linear scaling rule applies (Goyal et al., arXiv:1706.02677): the learning rate
    grows with the batch size, and iters and warmup_iters shrink, so that the run sees the same number of images.

    Args:
        config: the settings of the run.
        steps_per_epoch: steps that one pass over the images takes.

    Returns:
        The schedule.
    """
    schedule, factor = config.schedule, 1.0
    if schedule.auto_scale:
        factor = config.train.batch_size / schedule.reference_batch
    total = round(schedule.iters / factor) if schedule.iters else math.ceil((schedule.epochs or 0) * steps_per_epoch)
    total = max(1, total)
    return Schedule(config.optimiser.lr * factor, total, min(round(schedule.warmup_iters / factor), total), schedule)
