"""The tables of data sets show every count, on a terminal of 80 columns too."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from heads.class_lists import COCO_80
from tools.report.summary import data_summary_table


def make_summary(**changes: Any) -> dict[str, Any]:
    return {
        "images": 1200,
        "images_without_boxes": 30,
        "boxes": 6000,
        "crowds": 11,
        "dropped": {"thinner than a pixel": 4, "outside the image": 0},
        "box_sizes": {"small": 3000, "medium": 2000, "large": 1000},
        "categories": {"rare [bold]": 1, "absent": 0, "common": 5999},
        "image_sizes": {"min": "128x96", "median": "640x480", "max": "640x640"},
        **changes,
    }


def rendered(summary: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(data_summary_table(summary))
    return capture.get()


def test_counts_shares_and_sizes_are_shown() -> None:
    rows = [" ".join(line.split()) for line in rendered(make_summary()).splitlines()]
    for row in (
        "images 1,200",
        "without boxes 30 2.5 %",
        "median size 640x480",
        "boxes 6,000 5.0 per image",
        "small (below 32² px) 3,000 50.0 %",
        "crowds 11",
        "dropped 4",
        "thinner than a pixel 4",
        "outside the image 0",
    ):
        assert row in rows


def test_categories_are_sorted_by_frequency_with_empty_ones_last() -> None:
    text = rendered(make_summary())
    assert "3 categories, 1 of them without instances" in text
    # brackets in a name are not markup
    assert text.index("common") < text.index("rare [bold]") < text.index("absent")


def test_80_categories_fit_on_one_screen() -> None:
    lines = rendered(make_summary(categories={f"thing {i}": 100 - i for i in range(80)})).splitlines()
    assert len(lines) < 45
    row = next(line for line in lines if "thing 0 " in line)
    assert row.split() == ["thing", "0", "100", "thing", "20", "80", "thing", "40", "60", "thing", "60", "40"]


def test_80_columns_show_every_count() -> None:
    categories = {name: 12_345 - i for i, name in enumerate(COCO_80)}
    words = rendered(make_summary(categories=categories), width=80).split()
    assert all(f"{count:,}" in words for count in categories.values())


def test_an_empty_data_set_is_no_division_by_zero() -> None:
    empty = {
        "images": 0,
        "images_without_boxes": 0,
        "boxes": 0,
        "crowds": 0,
        "dropped": {},
        "box_sizes": {"small": 0, "medium": 0, "large": 0},
        "categories": {},
        "image_sizes": {},
    }
    assert "0 categories" in rendered(empty)
