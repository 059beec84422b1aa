"""Plots of the rows that grow with something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_plots(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Plot every row whose comparisons have a place on an axis.

    Args:
        results: the content of benchmark.json.
        folder: where the pictures are written.

    Returns:
        The pictures, one per row: ROW.png.
    """
    rows: dict[str, list[Any]] = defaultdict(list)
    for comparison in results["comparisons"]:
        if comparison["x"] is not None:
            rows[comparison["row"]].append(comparison)
    written = []
    for row, found in rows.items():
        written.append(folder / f"{row}.png")
        _write_plot(found, written[-1])
    return written


def _write_plot(comparisons: list[Any], path: Path) -> None:
    # no pyplot: its figures are global state, and it may choose a backend that needs a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for comparison in comparisons:
        for contender in comparison["contenders"]:
            if contender["median"] is not None:
                lines[contender["name"]].append((comparison["x"][0], contender["median"], *contender["quartiles"]))
    for name, points in lines.items():
        x, median, low, high = zip(*sorted(points))
        axes.plot(x, median, marker="o", label=name)
        axes.fill_between(x, low, high, alpha=0.2)
    axes.set_xlabel(comparisons[0]["x"][1])
    axes.set_ylabel({"s": "seconds"}.get(comparisons[0]["unit"], comparisons[0]["unit"]))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
