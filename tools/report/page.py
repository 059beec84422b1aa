"""Contact sheets: images with captions on one page."""

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
    """Write a PNG with images in rows, each with its caption below. A row is as high as its tallest image.

    Args:
        path: file to write; its folder is created.
        tiles: images (H, W, 3) uint8 RGB, of any sizes.
        captions: one per image; shortened to fit.
        columns: maximum number of images per row.
        tile_px: side of the square that each image is scaled to fit, pixels.
        title: heading of the page; none if empty.

    Raises:
        InvalidValue: there are no images, or not one caption for each, or `columns` is less than 1.
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
    if title:
        heading = shorten(title, load_font(22), width - 2 * GAP_PX)
        ImageDraw.Draw(page).text((GAP_PX, GAP_PX), heading, fill=INK, font=load_font(22))
    top = GAP_PX + title_px
    for row, row_height in zip(rows, row_heights, strict=True):
        _draw_row(page, [(pictures[i], captions[i]) for i in row], top, tile_px)
        top += row_height + CAPTION_PX + GAP_PX
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, format="PNG")


def shorten(text: str, font: Font, width_px: int) -> str:
    """Shorten a text to a width in pixels, with an ellipsis at the end; a text that fits is returned unchanged."""
    if font.getlength(text) <= width_px:
        return text
    length = len(text)
    while length and font.getlength(text[:length].rstrip() + "…") > width_px:
        length -= 1
    return text[:length].rstrip() + "…"


def _draw_row(page: Image.Image, row: Sequence[tuple[Image.Image, str]], top: int, tile_px: int) -> None:
    """Draw pictures with their captions, from left to right."""
    pen = ImageDraw.Draw(page)
    for column, (picture, caption) in enumerate(row):
        left = GAP_PX + column * (tile_px + GAP_PX)
        page.paste(picture, (left + (tile_px - picture.width) // 2, top))
        # below its picture, not below the row: far from a flat picture, it would seem to belong to the next row
        text = shorten(caption, load_font(14), tile_px)
        pen.text((left, top + picture.height + 4), text, fill=INK, font=load_font(14))


def _fit(tile: npt.NDArray[np.uint8], tile_px: int) -> Image.Image:
    picture = Image.fromarray(tile)
    scale = tile_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
