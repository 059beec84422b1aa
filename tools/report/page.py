"""A contact sheet: many images and their captions on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from resnet_backbone.errors import InvalidValue
from tools.report.draw import Font, load_font

GAP_PX = 12
CAPTION_PX = 24
TITLE_PX = 40
PAPER = (255, 255, 255)
INK = (40, 40, 40)


def write_page(
    path: Path,
    tiles: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str],
    *,
    columns: int = 4,
    tile_px: int = 320,
    title: str = "",
) -> None:
    """Writes a PNG with the tiles in rows, each scaled to fit a square of tile_px, its caption below it.

    tiles: (H, W, 3) uint8 RGB of any sizes. A row is as high as its tallest tile.
    """
    if not tiles or len(captions) != len(tiles) or columns < 1:
        raise InvalidValue(
            f"{len(tiles)} tiles, {len(captions)} captions, {columns} columns: give at least one tile, "
            "a caption for each and at least one column"
        )
    pictures = [_fit(tile, tile_px) for tile in tiles]
    columns = min(columns, len(pictures))
    rows = [list(range(i, min(i + columns, len(pictures)))) for i in range(0, len(pictures), columns)]
    row_heights = [max(pictures[i].height for i in row) for row in rows]
    title_px = TITLE_PX if title else 0
    width = GAP_PX + columns * (tile_px + GAP_PX)
    height = GAP_PX + title_px + sum(row_height + CAPTION_PX + GAP_PX for row_height in row_heights)

    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    if title:
        heading = shorten(title, load_font(22), width - 2 * GAP_PX)
        pen.text((GAP_PX, GAP_PX), heading, fill=INK, font=load_font(22))
    top = GAP_PX + title_px
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, i in enumerate(row):
            left = GAP_PX + column * (tile_px + GAP_PX)
            page.paste(pictures[i], (left + (tile_px - pictures[i].width) // 2, top))
            # below its own tile, not below the row: far from a flat tile it would seem to be the next row's
            line = shorten(captions[i], load_font(14), tile_px)
            pen.text((left, top + pictures[i].height + 4), line, fill=INK, font=load_font(14))
        top += row_height + CAPTION_PX + GAP_PX
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, format="PNG")


def shorten(text: str, font: Font, width_px: int) -> str:
    """The text, or as much of its beginning as fits with an ellipsis."""
    if font.getlength(text) <= width_px:
        return text
    kept = len(text)
    while kept and font.getlength(text[:kept].rstrip() + "…") > width_px:
        kept -= 1
    return text[:kept].rstrip() + "…"


def _fit(tile: npt.NDArray[np.uint8], tile_px: int) -> Image.Image:
    picture = Image.fromarray(tile)
    scale = tile_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
