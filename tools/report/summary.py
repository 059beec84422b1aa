"""Content of a data set, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

CATEGORY_COLUMNS = 4
# COCO's area ranges
SIZE_LABELS = {"small": "small (below 32² px)", "medium": "medium (to 96² px)", "large": "large (96² px and more)"}


def data_summary_table(summary: Mapping[str, Any]) -> Group:
    """Build the tables of a detection data set: counts, dropped annotations, sizes, and instances by category.

    Args:
        summary: counts as `CocoData.summary` returns them: "images", "images_without_boxes", "boxes" and "crowds";
            "dropped" {reason: count}; "box_sizes" {"small", "medium", "large": count}; "categories" {name: count};
            "image_sizes" {"min", "median", "max": "WxH"}.

    Returns:
        Two tables, one below the other; categories are sorted by frequency.
    """
    categories = summary["categories"]
    empty = sum(count == 0 for count in categories.values())
    title = f"Instances by category: {len(categories)} categories, {empty} of them without instances"
    return Group(_counts_table(summary), _frequency_table(categories, "category", title))


def classes_summary_table(summary: Mapping[str, Any]) -> Table:
    """Build the table of a classification data set: images by class, sorted by frequency.

    Args:
        summary: counts as `LabelledData.summary` returns them: "images"; "classes" {name: count}.

    Returns:
        The table.
    """
    classes = summary["classes"]
    empty = sum(count == 0 for count in classes.values())
    title = f"{summary['images']:,} images by class: {len(classes)} classes, {empty} of them without images"
    return _frequency_table(classes, "class", title)


def _counts_table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False, title="Data")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", justify="right", style="dim")
    images, boxes = summary["images"], summary["boxes"]
    empty = summary["images_without_boxes"]
    table.add_row("images", f"{images:,}", "")
    table.add_row("  without boxes", f"{empty:,}", _percentage(empty, images))
    for statistic, size in summary["image_sizes"].items():
        table.add_row(f"  {statistic} size", escape(str(size)), "")
    table.add_row("boxes", f"{boxes:,}", f"{boxes / images:.1f} per image" if images else "")
    for size, count in summary["box_sizes"].items():
        table.add_row(f"  {escape(SIZE_LABELS.get(size, size))}", f"{count:,}", _percentage(count, boxes))
    table.add_row("crowds", f"{summary['crowds']:,}", "")
    table.add_row("dropped", f"{sum(summary['dropped'].values()):,}", "")
    for reason, count in summary["dropped"].items():
        table.add_row(f"  {escape(reason)}", f"{count:,}", "", style="yellow" if count else "")
    return table


def _frequency_table(counts: Mapping[str, int], header: str, title: str) -> Table:
    """Names and counts in `CATEGORY_COLUMNS` columns; the order runs down the columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    digits = max((len(f"{count:,}") for count in counts.values()), default=1)
    for _ in range(CATEGORY_COLUMNS):
        table.add_column(header)  # may wrap: in a narrow terminal names are shortened, counts never are
        table.add_column("n", justify="right", no_wrap=True, min_width=digits)
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    height = max(1, -(-len(ranked) // CATEGORY_COLUMNS))
    parts = [ranked[start : start + height] for start in range(0, len(ranked), height)]
    for row in zip_longest(*parts):
        cells = [("", "") if item is None else (escape(item[0]), f"{item[1]:,}") for item in row]
        table.add_row(*(cell for pair in cells for cell in pair))
    return table


def _percentage(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
