"""Images and captions are at their places on a contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tools.report.draw import load_font
from tools.report.page import CAPTION_PX, GAP_PX, PAPER, TITLE_PX, shorten, write_page

Pixels = npt.NDArray[np.uint8]


def tile(height: int, width: int, shade: int) -> Pixels:
    return np.full((height, width, 3), shade, dtype=np.uint8)


def read_page(path: Path) -> Pixels:
    with Image.open(path) as page:
        assert page.format == "PNG"
        return np.array(page)


def test_tiles_are_placed_in_rows_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.png"
    tiles = [tile(50, 100, 10), tile(100, 50, 60), tile(30, 30, 90)]
    write_page(path, tiles, ["", "", ""], columns=2, tile_px=80)
    page = read_page(path)
    # the first row is as high as its tall tile (80), the second as its square tile (80)
    assert page.shape == (GAP_PX + 2 * (80 + CAPTION_PX + GAP_PX), GAP_PX + 2 * (80 + GAP_PX), 3)
    top, left = GAP_PX, GAP_PX
    assert (page[top : top + 40, left : left + 80] == 10).all()
    assert (page[top + 40 : top + 80, left : left + 80] == PAPER).all()
    second = left + 80 + GAP_PX
    assert (page[top : top + 80, second + 20 : second + 60] == 60).all()  # 80x40, centred in its column
    assert (page[top : top + 80, second : second + 20] == PAPER).all()
    third = top + 80 + CAPTION_PX + GAP_PX
    assert (page[third : third + 80, left : left + 80] == 90).all()  # magnified


def test_fewer_tiles_than_columns_give_a_narrow_page(tmp_path: Path) -> None:
    write_page(tmp_path / "page.png", [tile(10, 10, 0)], [""], columns=4, tile_px=50)
    assert read_page(tmp_path / "page.png").shape[1] == 50 + 2 * GAP_PX


def test_long_titles_and_captions_stay_inside_the_margins(tmp_path: Path) -> None:
    write_page(tmp_path / "page.png", [tile(20, 40, 0)], ["caption " * 30], tile_px=100, title="A title " * 30)
    page = read_page(tmp_path / "page.png")
    assert page.shape[0] == GAP_PX + TITLE_PX + 50 + CAPTION_PX + GAP_PX
    ink = (page != PAPER).any(axis=2)
    assert ink[GAP_PX : GAP_PX + TITLE_PX].any()
    assert ink[GAP_PX + TITLE_PX + 50 : -GAP_PX].any()
    for margin in (ink[:, :GAP_PX], ink[:, -GAP_PX:], ink[-GAP_PX:], ink[:GAP_PX]):
        assert not margin.any()


def test_shortened_text_fits_the_width() -> None:
    font = load_font(14)
    assert shorten("short", font, 300) == "short"
    shortened = shorten("a long caption of many words", font, 100)
    assert shortened.endswith("…") and font.getlength(shortened) <= 100
    assert "a long caption".startswith(shortened[:6])
    assert shorten("anything", font, 0) == "…"


@pytest.mark.parametrize(("num_tiles", "num_captions", "columns"), [(0, 0, 4), (2, 1, 4), (1, 1, 0)])
def test_missing_tiles_captions_and_columns_are_errors(
    tmp_path: Path, num_tiles: int, num_captions: int, columns: int
) -> None:
    with pytest.raises(ValueError, match=rf"{num_tiles} tiles, {num_captions} captions, {columns} columns"):
        write_page(tmp_path / "page.png", [tile(5, 5, 0)] * num_tiles, ["x"] * num_captions, columns=columns)
