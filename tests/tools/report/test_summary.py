from __future__ import annotations

from typing import Any

from rich.console import Console

from tools.report.summary import data_summary_table


def summary(**changes: Any) -> dict[str, Any]:
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


def printed(given: dict[str, Any], width: int = 100) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(data_summary_table(given))
    return capture.get()


def test_counts_shares_and_sizes_are_shown() -> None:
    rows = [" ".join(line.split()) for line in printed(summary()).splitlines()]
    for row in (
        "images 1,200",
        "without boxes 30 2.5 %",
        "size, median 640x480",
        "boxes 6,000 5.0 an image",
        "small (below 32²) 3,000 50.0 %",
        "crowds 11",
        "dropped 4",
        "thinner than a pixel 4",
        "outside the image 0",
    ):
        assert row in rows


def test_categories_come_by_frequency_with_the_absent_last() -> None:
    text = printed(summary())
    assert "3 categories, 1 of them without any" in text
    # brackets in a name are its own, not markup
    assert text.index("common") < text.index("rare [bold]") < text.index("absent")


def test_80_categories_fit_a_screen() -> None:
    lines = printed(summary(categories={f"thing {i}": 100 - i for i in range(80)})).splitlines()
    assert len(lines) < 45
    row = next(line for line in lines if "thing 0 " in line)
    assert row.split() == ["thing", "0", "100", "thing", "20", "80", "thing", "40", "60", "thing", "60", "40"]


def test_an_empty_set_is_shown_without_a_division_by_zero() -> None:
    nothing = {
        "images": 0,
        "images_without_boxes": 0,
        "boxes": 0,
        "crowds": 0,
        "dropped": {},
        "box_sizes": {"small": 0, "medium": 0, "large": 0},
        "categories": {},
        "image_sizes": {},
    }
    assert "0 categories" in printed(nothing)
