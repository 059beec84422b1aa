"""Scores as tables for a terminal, in percent."""

from __future__ import annotations

from itertools import zip_longest

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from tools.evaluation.scores import FIGURES, Scores


def scores_table(scores: Scores) -> Group:
    """The twelve figures by kind; below them AP by category, as many side by side as 80 columns hold."""
    return Group(_figures_table(scores), _category_table(scores, columns=3 if len(scores.kinds) == 1 else 2))


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _figures_table(scores: Scores) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title="COCO scores, %")
    table.add_column("")
    for name in FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    for kind, found in scores.kinds.items():
        table.add_row(kind, *(percent(found.figures[name]) for name in FIGURES))
    return table


def _category_table(scores: Scores, columns: int) -> Table:
    kinds = list(scores.kinds)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title="AP by category, %")
    cells = [_category_cells(scores, name) for name in scores.kinds[kinds[0]].by_category]
    for _ in range(columns):
        table.add_column("category")  # may wrap: on a narrow screen names give way, figures never do
        digits = max(len(cell[1]) for cell in cells)
        table.add_column("n", justify="right", style="dim", no_wrap=True, min_width=digits)
        for kind in kinds:
            table.add_column(kind, justify="right", no_wrap=True, min_width=len("100.0"))
    height = max(1, -(-len(cells) // columns))
    # read downwards, like a list; the last column may be shorter
    parts = [cells[start : start + height] for start in range(0, len(cells), height)]
    for row in zip_longest(*parts, fillvalue=[""] * (2 + len(kinds))):
        table.add_row(*(cell for part in row for cell in part))
    return table


def _category_cells(scores: Scores, name: str) -> list[str]:
    found = [kind.by_category[name] for kind in scores.kinds.values()]
    return [escape(name), str(found[0]["instances"]), *(percent(each["AP"]) for each in found)]
