"""A run's metrics.jsonl as one picture: losses, learning rate, and AP or errors where the run was validated."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from resnet_backbone.errors import InvalidValue

Records = list[dict[str, Any]]
LOSS_PREFIX = "losses/"
TRAIN_ERROR = "train_error"


def write_loss_curve(metrics: Path, out: Path) -> None:
    """Draws metrics.jsonl, with its lines of kind "train" and "val", to `out` in the format of its suffix."""
    records = read_metrics(metrics)
    train = by_step(records, "train")
    if not train:
        raise InvalidValue(
            f"{metrics} has {len(records)} lines and none of kind 'train': nothing to draw; the run stopped "
            "before its first log, or this is not a run's metrics.jsonl"
        )
    validation = by_step(records, "val")
    ap_keys = _keys(validation, "/AP", "/AP50")
    errors = bool(_keys(train, prefix=TRAIN_ERROR))
    heights = [3.0, 1.0, 1.5] if ap_keys or errors else [3.0, 1.0]
    # no pyplot: its figures are global state, and would pick a backend that wants a screen
    figure = Figure(figsize=(9, 1.9 * sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_losses(panels[0], train)
    _draw_learning_rate(panels[1], train)
    if ap_keys:
        _draw_ap(panels[2], validation, ap_keys)
    elif errors:
        _draw_errors(panels[2], train, validation)
    panels[-1].set_xlabel("step")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def read_metrics(metrics: Path) -> Records:
    """The lines of metrics.jsonl; a last line that was cut off, as a killed run leaves it, is left out."""
    # "replace": a line may be cut within a character
    text = Path(metrics).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.split("\n") if line.strip()]
    records: Records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise InvalidValue(
                f"{metrics}, line {number} of {len(lines)} is not JSON ({error}): only the last line may be "
                "cut off; remove the line if the rest is sound"
            ) from error
        if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
            raise InvalidValue(
                f"{metrics}, line {number} is {line[:80]!r}, wanted an object with 'kind' and 'step': "
                "this is not a run's metrics.jsonl"
            )
        records.append(record)
    return records


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential mean over about `span` values, unbiased from the first on; what is not finite is a gap."""
    decay = 1 - 1 / max(1.0, span)
    total, weight = 0.0, 0.0
    means = []
    for value in values:
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        means.append(total / weight if weight and math.isfinite(value) else math.nan)
    return means


def _draw_losses(panel: Axes, train: Records) -> None:
    steps = [record["step"] for record in train]
    keys = ["loss", *_keys(train, prefix=LOSS_PREFIX)]
    for i, key in enumerate(keys):
        values = column(train, key)
        colour = "black" if key == "loss" else f"C{(i - 1) % 10}"
        panel.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        panel.plot(
            steps,
            smooth(values, span=len(values) / 40),
            color=colour,
            linewidth=1.8 if key == "loss" else 1.2,
            marker="." if len(steps) == 1 else "",  # a line through one point is invisible
            label="total" if key == "loss" else key.removeprefix(LOSS_PREFIX),
        )
    panel.set_ylabel("loss")
    panel.legend(fontsize="small", ncols=2)
    panel.grid(alpha=0.3)


def _draw_learning_rate(panel: Axes, train: Records) -> None:
    panel.plot([record["step"] for record in train], column(train, "lr"), color="C7")
    panel.set_ylabel("learning rate")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)


def _draw_ap(panel: Axes, validation: Records, keys: Sequence[str]) -> None:
    steps = [record["step"] for record in validation]
    for i, key in enumerate(keys):
        percents = [100 * value for value in column(validation, key)]
        panel.plot(steps, percents, marker="o", markersize=3, color=f"C{i % 10}", label=key)
    panel.set_ylabel("AP, %")
    panel.set_ylim(bottom=0)
    panel.legend(fontsize="small", ncols=2)
    panel.grid(alpha=0.3)


def _draw_errors(panel: Axes, train: Records, validation: Records) -> None:
    """As in the paper's figures 4 and 6: the training images' error is that of the augmented crops as they come."""
    percents = [100 * value for value in column(train, TRAIN_ERROR)]
    steps = [record["step"] for record in train]
    panel.plot(steps, smooth(percents, span=len(percents) / 40), color="C0", label="training images")
    if validation:
        errors = [100 * value for value in column(validation, "error")]
        panel.plot(
            [record["step"] for record in validation], errors, "o-", markersize=3, color="C1", label="test images"
        )
    panel.set_ylabel("top-1 error, %")
    panel.set_ylim(bottom=0)
    panel.legend(fontsize="small", ncols=2)
    panel.grid(alpha=0.3)


def by_step(records: Records, kind: str) -> Records:
    """A kind's records by step; where a resumed run went over a step again, what it wrote last."""
    last = {record["step"]: record for record in records if record["kind"] == kind}
    return [last[step] for step in sorted(last)]


def _keys(records: Records, *suffixes: str, prefix: str = "") -> list[str]:
    """The keys with the prefix and one of the suffixes, in order of first appearance."""
    seen = dict.fromkeys(key for record in records for key in record)
    return [key for key in seen if key.startswith(prefix) and key.endswith(suffixes or ("",))]


def column(records: Records, key: str) -> list[float]:
    return [math.nan if record.get(key) is None else float(record[key]) for record in records]
