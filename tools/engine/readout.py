"""Losses and the norm of the gradient of a step, on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnet_backbone.errors import UserError

from .tasks import Outcome


class NonFiniteLoss(UserError, FloatingPointError):
    """A loss or the gradient is NaN or infinite; the weights were not changed by that step."""


@dataclass(frozen=True)
class StepValues:
    """What the log shows of one step; losses and figures are means over its batches.

    Attributes:
        losses: by name.
        figures: by name.
        norm: the norm of the gradient.
    """

    losses: dict[str, float]
    figures: dict[str, float]
    norm: float


class Readout:
    """The values of one step, copied to the host without waiting for the device.

    Args:
        step: index of the step.
        outcomes: one per batch of the step, all with the same names.
        image_ids: the images of each batch.
        norm: the norm of the gradient, a scalar.
        checks_norm: whether a norm that is not finite is an error. fp16 training skips such steps until it has found a
            scale for the loss.

    Attributes:
        finite: whether the step may be taken, a scalar bool on the device.
    """

    def __init__(
        self,
        step: int,
        outcomes: Sequence[Outcome],
        image_ids: Sequence[Sequence[int | str]],
        norm: Tensor,
        *,
        checks_norm: bool,
    ) -> None:
        self.step, self.image_ids, self._checks_norm = step, image_ids, checks_norm
        self._losses, self._figures = list(outcomes[0].losses), list(outcomes[0].figures)
        losses = torch.stack([o.losses[name].detach().double() for o in outcomes for name in self._losses])
        figures = [o.figures[name].detach().double() for o in outcomes for name in self._figures]
        gradient = norm.detach().double()
        self.finite = losses.isfinite().all() & (gradient.isfinite() if checks_norm else True)
        self._values = torch.stack([gradient, *losses, *figures]).to("cpu", non_blocking=True)
        self._copied = None
        if losses.device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(losses.device))

    def read(self, checkpoint: Path) -> StepValues:
        """Wait for the values, and check them.

        Args:
            checkpoint: the last one, for the message.

        Returns:
            The values.

        Raises:
            NonFiniteLoss: a loss or the gradient is NaN or infinite.
        """
        if self._copied is not None:
            self._copied.synchronize()
        norm, *rest = self._values.tolist()
        count = len(self._losses) * len(self.image_ids)
        losses, figures = _rows(rest[:count], len(self._losses)), _rows(rest[count:], len(self._figures))
        for row, image_ids in zip(losses, self.image_ids):
            if not all(abs(value) < float("inf") for value in row):
                named = ", ".join(f"{name}={value:g}" for name, value in zip(self._losses, row))
                raise NonFiniteLoss(
                    f"step {self.step}: a loss is not finite ({named}), images {image_ids}. The last "
                    f"checkpoint is unchanged ({checkpoint}): lower optimiser.lr, set optimiser.clip_norm, "
                    "or look at these images"
                )
        if self._checks_norm and not norm < float("inf"):
            images = [image_id for of_batch in self.image_ids for image_id in of_batch]
            raise NonFiniteLoss(
                f"step {self.step}: the gradient's norm is {norm}, with finite losses, images {images}. "
                f"The last checkpoint is unchanged ({checkpoint}): lower optimiser.lr or look at these images"
            )
        return StepValues(_means(self._losses, losses), _means(self._figures, figures), norm)


def _rows(values: list[float], width: int) -> list[list[float]]:
    return [values[i : i + width] for i in range(0, len(values), max(1, width))]


def _means(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, float]:
    return {name: sum(column) / len(rows) for name, column in zip(names, zip(*rows))}
