"""The tables of scores are complete on a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from tools.evaluation.scores import FIGURES, CategoryScores, KindScores, Scores
from tools.evaluation.table import percent, scores_table


def make_scores(kinds: tuple[str, ...], num_categories: int) -> Scores:
    figures: dict[str, float | None] = {name: i / 100 for i, name in enumerate(FIGURES)}
    figures["APl"] = None
    by_category = {
        f"thing {i}": CategoryScores(AP=None if i == 1 else i / 1000, AP50=0.5, instances=10 * i)
        for i in range(num_categories)
    }
    return Scores({kind: KindScores(figures, by_category) for kind in kinds})


def rendered(scores: Scores, width: int) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(scores_table(scores))
    return capture.get().splitlines()


@pytest.mark.parametrize(("fraction", "text"), [(None, "-"), (0.0, "0.0"), (0.3752, "37.5"), (1.0, "100.0")])
def test_percentages_have_one_digit_after_the_point(fraction: float | None, text: str) -> None:
    assert percent(fraction) == text


@pytest.mark.parametrize("kinds", [("bbox",), ("bbox", "segm")])
def test_80_columns_show_every_figure(kinds: tuple[str, ...]) -> None:
    lines = rendered(make_scores(kinds, 80), width=80)
    header = next(line.split() for line in lines if "AP50" in line)
    assert header == list(FIGURES)
    for kind in kinds:
        row = next(line.split() for line in lines if line.split()[:1] == [kind])
        assert row[1:] == [*("0.0", "1.0", "2.0", "3.0", "4.0"), "-", *(f"{i}.0" for i in range(6, 12))]


def test_80_categories_are_listed_down_the_columns() -> None:
    lines = rendered(make_scores(("bbox",), 80), width=80)
    assert len(lines) < 40
    row = next(line for line in lines if "thing 1 " in line)
    # 27 per column: things 1, 28 and 55
    expected = ["thing", "1", "10", "-", "thing", "28", "280", "2.8", "thing", "55", "550", "5.5"]
    assert row.split() == expected
    assert sum("thing 79" in line for line in lines) == 1


def test_80_columns_show_both_kinds_of_every_category_in_full() -> None:
    text = "\n".join(rendered(make_scores(("bbox", "segm"), 80), width=80))
    assert "…" not in text
    assert "790    7.9    7.9" in text


def test_a_name_in_brackets_is_not_markup() -> None:
    kind = KindScores(dict.fromkeys(FIGURES, 0.0), {"[bold]": CategoryScores(AP=0.1, AP50=0.1, instances=1)})
    assert any("[bold]" in line for line in rendered(Scores({"bbox": kind}), width=100))


def test_images_that_were_not_scored_and_the_backend_are_shown() -> None:
    scores = replace(
        make_scores(("bbox",), 3), images=9, skipped_images=("[a]", *range(6)), backend="pycocotools 2.0.11"
    )
    lines = rendered(scores, width=80)
    assert lines[-2].rstrip() == "7 images were not scored: [a], 0, 1, 2, 3 ..."
    assert lines[-1].rstrip() == "scored by pycocotools 2.0.11 on 9 images"
    assert not any("scored" in line for line in rendered(make_scores(("bbox",), 3), width=80))
