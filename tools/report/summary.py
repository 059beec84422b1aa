"""What is in a data set, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

CATEGORY_COLUMNS = 4
# The words of COCO's scores, with what they mean.
SIZE_WORDS = {"small": "small (below 32²)", "medium": "medium (to 96²)", "large": "large (above 96²)"}


def data_summary_table(summary: Mapping[str, Any]) -> Group:
    """Counts, what was dropped and why, sizes, and instances by category, the most frequent first.

    summary: images, images_without_boxes, boxes, crowds (counts); dropped {reason: count};
    box_sizes {small, medium, large: count}; categories {name: count}; image_sizes {min, median, max: "WxH"}.
    """
    return Group(_counts_table(summary), _category_table(summary["categories"], "Instances"))


def _counts_table(summary: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False, title="Data")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", justify="right", style="dim")
    images, boxes = summary["images"], summary["boxes"]
    empty = summary["images_without_boxes"]
    table.add_row("images", f"{images:,}", "")
    table.add_row("  without boxes", f"{empty:,}", _share(empty, images))
    for word, size in summary["image_sizes"].items():
        table.add_row(f"  size, {word}", escape(str(size)), "")
    table.add_row("boxes", f"{boxes:,}", f"{boxes / images:.1f} an image" if images else "")
    for word, count in summary["box_sizes"].items():
        table.add_row(f"  {escape(SIZE_WORDS.get(word, word))}", f"{count:,}", _share(count, boxes))
    table.add_row("crowds", f"{summary['crowds']:,}", "")
    table.add_row("dropped", f"{sum(summary['dropped'].values()):,}", "")
    for reason, count in summary["dropped"].items():
        table.add_row(f"  {escape(reason)}", f"{count:,}", "", style="yellow" if count else "")
    return table


def _category_table(categories: Mapping[str, int], what: str) -> Table:
    absent = sum(count == 0 for count in categories.values())
    title = f"{what} by category: {len(categories)} categories, {absent} of them without any"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    for _ in range(CATEGORY_COLUMNS):
        table.add_column("category", overflow="ellipsis", no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
    ranked = sorted(categories.items(), key=lambda item: -item[1])
    height = max(1, -(-len(ranked) // CATEGORY_COLUMNS))
    parts = [ranked[start : start + height] for start in range(0, len(ranked), height)]
    for row in zip_longest(*parts):  # read downwards, like a list
        cells = [("", "") if item is None else (escape(item[0]), f"{item[1]:,}") for item in row]
        table.add_row(*(cell for pair in cells for cell in pair))
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def classes_summary_table(summary: Mapping[str, Any]) -> Table:
    """summary: images (count); classes {name: count of images}."""
    return _category_table(summary["classes"], f"{summary['images']:,} images")
