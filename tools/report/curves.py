"""Plot of a run's metrics.jsonl: losses, learning rate, and AP or classification errors.

Metrics are lists of records, the lines of metrics.jsonl: {"kind": "train" or "val", "step": ..., figures}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_backbone.errors import InvalidValue, MissingFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = list[dict[str, Any]]
LOSS_PREFIX = "losses/"
TRAIN_ERROR = "train_error"


def write_loss_curve(metrics: Path, out: Path) -> None:
    """Plot the losses, the learning rate and, if there are any, AP of evaluations or classification errors.

    Args:
        metrics: the run's metrics.jsonl.
        out: picture to write, in the format of its suffix; its folder is created.

    Raises:
        MissingFile: there is no such metrics.jsonl.
        InvalidValue: the file is no metrics.jsonl, or has no line of kind "train".
    """
    # not at the top: `--help` does not need it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_metrics(metrics)
    train = by_step(records, "train")
    if not train:
        raise InvalidValue(
            f"{metrics} has {len(records)} lines, but none of kind 'train': the run stopped before its first log, or "
            "this is not a run's metrics.jsonl; give that of a run with training steps"
        )
    validation = by_step(records, "val")
    ap_keys = _keys(validation, "/AP", "/AP50")
    has_errors = bool(_keys(train, prefix=TRAIN_ERROR))
    heights = [3.0, 1.0, 1.5] if ap_keys or has_errors else [3.0, 1.0]
    # no pyplot: its figures are global state, and it may choose a backend that needs a display
    figure = Figure(figsize=(9, 1.9 * sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    _draw_losses(panels[0], train)
    _draw_learning_rate(panels[1], train)
    if ap_keys:
        _draw_ap(panels[2], validation, ap_keys)
    elif has_errors:
        _draw_errors(panels[2], train, validation)
    panels[-1].set_xlabel("step")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def read_metrics(metrics: Path) -> Records:
    """Read metrics.jsonl. An incomplete last line, as a killed run leaves it, is left out.

    Args:
        metrics: the file.

    Returns:
        Its lines, as records with at least "kind" and "step".

    Raises:
        MissingFile: there is no such file.
        InvalidValue: another line is not JSON, or a line is no such record.
    """
    if not Path(metrics).is_file():
        raise MissingFile(f"no metrics at {metrics}: give a run's metrics.jsonl")
    # "replace": the last line may end within a character
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
                f"{metrics}, line {number} of {len(lines)} is not JSON ({error}), and only the last line may be "
                "incomplete: remove the line if the others are valid"
            ) from error
        if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
            raise InvalidValue(
                f"{metrics}, line {number} is {line[:80]!r}, but must be an object with 'kind' and 'step': "
                "give a run's metrics.jsonl"
            )
        records.append(record)
    return records


def by_step(records: Records, kind: str) -> Records:
    """Select the records of one kind, sorted by step.

    Args:
        records: lines of metrics.jsonl.
        kind: "train" or "val".

    Returns:
        One record per step: the last one, if a resumed run repeated the step.
    """
    latest = {record["step"]: record for record in records if record["kind"] == kind}
    return [latest[step] for step in sorted(latest)]


def column(records: Records, key: str) -> list[float]:
    """Return one figure of each record; NaN where it is missing or null."""
    return [math.nan if record.get(key) is None else float(record[key]) for record in records]


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Compute an exponential moving average, with Adam's correction of the bias towards zero.

    Args:
        values: the series; values that are not finite are skipped.
        span: number of values averaged over, about; 1 or less changes nothing.

    Returns:
        As many averages; NaN where the value is not finite.
    """
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
    """As figures 4 and 6 of the paper; the training error is that of the augmented crops during training."""
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


def _keys(records: Records, *suffixes: str, prefix: str = "") -> list[str]:
    """Keys with the prefix and one of the suffixes, in order of first appearance."""
    keys = dict.fromkeys(key for record in records for key in record)
    return [key for key in keys if key.startswith(prefix) and key.endswith(suffixes or ("",))]
