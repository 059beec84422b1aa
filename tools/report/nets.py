"""Plots that compare nets: curves of their runs, statistics of their layers, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_backbone.errors import InvalidValue

from .curves import TRAIN_ERROR, by_step, column, read_metrics, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING = 12  # lines of metrics.jsonl averaged for each point of a curve


def read_run(metrics: Path) -> dict[str, Any]:
    """Read the curves of a classifier's run.

    Args:
        metrics: the run's metrics.jsonl.

    Returns:
        {"train": {"step", "loss", "error"}, "val": {"step", "error"}}, each a list; errors are top-1, 0..1.

    Raises:
        MissingFile: there is no such file.
        InvalidValue: it is not the metrics.jsonl of a classifier's run, or the run has no training step.
    """
    records = read_metrics(metrics)
    train, val = by_step(records, "train"), by_step(records, "val")
    if not train or TRAIN_ERROR not in train[0]:
        raise InvalidValue(
            f"{metrics} has no training errors: give metrics.jsonl of a classifier's run that logged a training step"
        )
    return {
        "train": {
            "step": [record["step"] for record in train],
            "loss": column(train, "loss"),
            "error": column(train, TRAIN_ERROR),
        },
        "val": {"step": [record["step"] for record in val], "error": column(val, "error")},
    }


def write_run_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], out: Path, title: str) -> None:
    """Plot training loss (left) and errors (right) of runs, as in figure 6 of the paper.

    Thin lines are errors on the augmented training images, thick lines with dots are errors on the test images.

    Args:
        runs: by net: curves of its runs as `read_run` returns them, one run per seed.
        out: picture to write, in the format of its suffix; its folder is created.
        title: heading.
    """
    figure, (left, right) = _figure(2, title)
    for index, (net, runs_of_net) in enumerate(runs.items()):
        style, colour = _style(net), f"C{index}"
        for number, run in enumerate(runs_of_net):
            label = net if number == 0 else None
            train, val = run["train"], run["val"]
            left.plot(train["step"], smooth(train["loss"], SMOOTHING), style, color=colour, linewidth=1.3, label=label)
            train_errors = [100 * value for value in smooth(train["error"], SMOOTHING)]
            right.plot(train["step"], train_errors, style, color=colour, linewidth=0.8)
            test_errors = [100 * value for value in val["error"]]
            right.plot(val["step"], test_errors, style + "o", color=colour, linewidth=1.8, markersize=3, label=label)
    left.set_ylabel("training loss, nats")
    right.set_ylabel("top-1 error, %")
    right.set_title("thin: training images, dots: test images", fontsize="small")
    for panel in (left, right):
        panel.set_xlabel("step")
        panel.legend(fontsize="small")
    left.set_ylim(top=2.5)  # the first losses of deep nets are far above all others
    _save(figure, out)


def write_layer_plot(
    layers: Mapping[str, Mapping[str, float]], out: Path, *, title: str, quantity: str, logarithmic: bool = False
) -> None:
    """Plot one statistic of each layer, in the order of the layers (left) and sorted by value (right).

    Source: figure 7 of the paper.

    Args:
        layers: by net: value by layer, in the order of the layers.
        out: picture to write, in the format of its suffix; its folder is created.
        title: heading.
        quantity: label of the vertical axis.
        logarithmic: whether the vertical axis is logarithmic.
    """
    figure, (left, right) = _figure(2, title)
    for index, (net, values) in enumerate(layers.items()):
        in_order = list(values.values())
        for panel, series in ((left, in_order), (right, sorted(in_order, reverse=True))):
            panel.plot(range(1, len(series) + 1), series, _style(net), color=f"C{index}", linewidth=1.3, label=net)
    left.set_xlabel("layer, from input to output")
    right.set_xlabel("layers, sorted by value")
    for panel in (left, right):
        panel.set_ylabel(quantity)
        panel.legend(fontsize="small")
        if logarithmic:
            panel.set_yscale("log")
        else:
            panel.set_ylim(bottom=0)
    _save(figure, out)


def write_counts_plot(counts: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Plot parameters over multiply-adds, for 224x224 (left) and 32x32 images (right). Rings are the paper's figures.

    Args:
        counts: one per net, as `NetCounts.to_json` returns them.
        out: picture to write, in the format of its suffix; its folder is created.
    """
    figure, panels = _figure(2, "parameters and multiply-adds")
    for panel, cifar in zip(panels, (False, True)):
        rings: dict[tuple[float, float], list[str]] = {}
        for row in counts:
            if ("_cifar" in row["net"]) != cifar:
                continue
            x, y = row["multiply_adds"], row["parameters"]
            panel.plot(x, y, "s" if row["net"].startswith("plain") else "o", color="C0", markersize=4)
            if row["paper_parameters"] or row["paper_multiply_adds"]:
                # a plain net and the ResNet of its depth share a ring, since the paper's figures are rounded
                ring = row["paper_multiply_adds"] or x, row["paper_parameters"] or round(y, -6)
                rings.setdefault(ring, []).append(row["net"])
        for ring, names in rings.items():
            panel.plot(*ring, "o", markerfacecolor="none", color="C3", markersize=11)
            panel.annotate(", ".join(names), ring, xytext=(10, -10), textcoords="offset points", fontsize=8)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.margins(x=0.35, y=0.15)
        panel.set_xlabel("multiply-adds for an image of " + ("32x32" if cifar else "224x224"))
        panel.set_ylabel("parameters  (ring: the paper's figure)")
    _save(figure, out)


def _style(net: str) -> str:
    return "--" if net.startswith("plain") else "-"


def _figure(columns: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    # not at the top: `--help` does not need it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * columns, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, list(panels)


def _save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
