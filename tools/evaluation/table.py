"""Scores as tables for a terminal, in percent."""

from __future__ import annotations

from itertools import zip_longest

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from tools.evaluation.scores import FIGURES, MAX_DETECTIONS, Scores


def scores_table(scores: Scores) -> Group:
    """Build the tables of COCO's twelve metrics by kind and of AP by category. They fit a terminal of 80 columns.

    Args:
        scores: scores of one or more kinds.

    Returns:
        Two tables, one below the other, and notes on the images that were not scored and the library that scored.
    """
    tables = _figures_table(scores), _category_table(scores, columns=3 if len(scores.kinds) == 1 else 2)
    return Group(*tables, *_notes(scores))


def _notes(scores: Scores) -> list[str]:
    notes = []
    if scores.skipped_images:
        shown = ", ".join(map(str, scores.skipped_images[:5])) + (" ..." if len(scores.skipped_images) > 5 else "")
        notes.append(f"{len(scores.skipped_images)} images were not scored: {escape(shown)}")
    if scores.backend:
        of = "" if scores.images is None else f" on {scores.images} images"
        notes.append(f"scored by {scores.backend}{of}")
    return notes


def percent(fraction: float | None) -> str:
    """Format a fraction as a percentage with one digit after the point, or as "-" if it is None."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _figures_table(scores: Scores) -> Table:
    title = "COCO scores, %"
    if scores.max_detections != MAX_DETECTIONS:
        title = f"scores with up to {scores.max_detections} detections of a class in an image, not COCO's, %"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    table.add_column("")
    for name in FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    for kind, kind_scores in scores.kinds.items():
        table.add_row(kind, *(percent(kind_scores.figures[name]) for name in FIGURES))
    return table


def _category_table(scores: Scores, columns: int) -> Table:
    kinds = list(scores.kinds)
    title = "AP by category, %  (n: ground-truth instances)"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    cells = [_category_cells(scores, name) for name in scores.kinds[kinds[0]].by_category]
    for _ in range(columns):
        table.add_column("category")  # may wrap: in a narrow terminal names are shortened, numbers never are
        digits = max(len(cell[1]) for cell in cells)
        table.add_column("n", justify="right", style="dim", no_wrap=True, min_width=digits)
        for kind in kinds:
            table.add_column(kind, justify="right", no_wrap=True, min_width=len("100.0"))
    height = max(1, -(-len(cells) // columns))
    # the order runs down the columns; the last one may be shorter
    parts = [cells[start : start + height] for start in range(0, len(cells), height)]
    for row in zip_longest(*parts, fillvalue=[""] * (2 + len(kinds))):
        table.add_row(*(cell for part in row for cell in part))
    return table


def _category_cells(scores: Scores, name: str) -> list[str]:
    by_kind = [kind_scores.by_category[name] for kind_scores in scores.kinds.values()]
    return [escape(name), str(by_kind[0]["instances"]), *(percent(category["AP"]) for category in by_kind)]
