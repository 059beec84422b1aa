"""Means of losses, figures and times over several steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .tasks import Outcome


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Average outcomes.

    Args:
        outcomes: at least one, all with the same names.

    Returns:
        The means, without graphs.
    """

    def mean(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([part[name].detach() for part in parts]).mean() for name in parts[0]}

    return Outcome(mean([o.losses for o in outcomes]), mean([o.figures for o in outcomes]))


class Meter:
    """Collects what happened since the last line of the log."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._times: list[tuple[float, float, float]] = []

    def add(self, outcome: Outcome, norm: float, data_s: float, step_s: float) -> None:
        """Add one step.

        Args:
            outcome: its losses and figures, on any device.
            norm: the norm of its gradient.
            data_s: seconds that it waited for data.
            step_s: seconds in all.
        """
        self._outcomes.append(outcome)
        self._times.append((norm, data_s, step_s))

    def drain(self, images: int) -> tuple[dict[str, float], dict[str, float]]:
        """Average the steps and start again.

        Args:
            images: images per step.

        Returns:
            Values for the log (grad_norm, data_s, step_s, loss, images_per_s and the figures), and the losses by name.
        """
        mean = mean_outcome(self._outcomes)
        losses = {name: float(loss) for name, loss in mean.losses.items()}
        norm, data_s, step_s = (sum(column) / len(self._times) for column in zip(*self._times))
        values = {"grad_norm": norm, "data_s": data_s, "step_s": step_s, "loss": sum(losses.values())}
        values |= {"images_per_s": images / step_s} | {name: float(value) for name, value in mean.figures.items()}
        self._outcomes, self._times = [], []
        return values, losses
