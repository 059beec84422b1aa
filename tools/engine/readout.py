"""Losses and the norm of the gradient of a step, on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        losses, figures = _rows(self._losses, rest[:count]), _rows(self._figures, rest[count:])
        for row, image_ids in zip(losses, self.image_ids):
            if not all(abs(value) < float("inf") for value in row.values()):
                named = ", ".join(f"{name}={value:g}" for name, value in row.items())
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
        return StepValues(means(losses), means(figures), norm)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average values by name.

    Args:
        rows: mappings with the same names; none for no values.

    Returns:
        The means.
    """
    return {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}


def _rows(names: Sequence[str], values: Sequence[float]) -> list[dict[str, float]]:
    """Values of several batches, each in the order of the names."""
    starts = range(0, len(values), max(1, len(names)))
    return [dict(zip(names, values[start:])) for start in starts]
