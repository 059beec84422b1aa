"""Means of losses, figures and times over several steps."""

from __future__ import annotations

from .readout import StepValues, means


class Meter:
    """Collects what happened since the last line of the log."""

    def __init__(self) -> None:
        self._values: list[StepValues] = []
        self._times: list[tuple[float, float]] = []

    def add(self, values: StepValues) -> None:
        """Add the losses, figures and gradient norm of one step."""
        self._values.append(values)

    def add_time(self, data_s: float, step_s: float) -> None:
        """Add the time of one step.

        Args:
            data_s: seconds that it waited for data.
            step_s: seconds in all.
        """
        self._times.append((data_s, step_s))

    def drain(self, images: int) -> tuple[dict[str, float], dict[str, float]]:
        """Average the steps and start again.

        Args:
            images: images per step.

        Returns:
            Values for the log (grad_norm, data_s, step_s, loss, images_per_s and the figures), and the losses by name.
        """
        losses = means([values.losses for values in self._values])
        norm = sum(values.norm for values in self._values) / len(self._values)
        data_s, step_s = (sum(column) / len(self._times) for column in zip(*self._times))
        figures = {"grad_norm": norm, "data_s": data_s, "step_s": step_s, "loss": sum(losses.values())}
        figures |= {"images_per_s": images / step_s} | means([values.figures for values in self._values])
        self._values, self._times = [], []
        return figures, losses
