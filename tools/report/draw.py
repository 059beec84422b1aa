"""Drawing of instances on their image: boxes, masks, names and scores.

Glossary: R instances; images are (H, W, 3) uint8 RGB. The drawing is `zoom` times as large as the image. `zoom` is an
integer, so that edges of pixels in the image are edges of pixels in the drawing.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from heads.masks import BitMasks
from resnet_backbone.errors import InvalidValue

Pixels = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Colour = tuple[int, int, int]

MASK_OPACITY = 0.45
LABEL_PADDING_PX = 2
MAX_MAGNIFIED_PX = 4096  # of the longer side


@dataclass(frozen=True)
class PixelBox:
    """A rectangle of whole pixels.

    Attributes:
        left: first column.
        top: first row.
        right: column after the last one.
        bottom: row after the last one.
    """

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: PixelBox) -> bool:
        """Check whether two rectangles have a pixel in common."""
        overlap_in_x = self.left < other.right and other.left < self.right
        return overlap_in_x and self.top < other.bottom and other.top < self.bottom


def draw_instances(
    image: Pixels,
    boxes: npt.NDArray[np.floating],
    labels: Sequence[str],
    *,
    scores: Sequence[float] | None = None,
    masks: Bits | BitMasks | None = None,
    min_side_px: int = 0,
) -> Pixels:
    """Draw R instances on a copy of an image, the largest first.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        boxes: (R, 4) xyxy, pixels of `image`. The outline lies within the pixels that the box touches, columns
            floor(x1)..ceil(x2)-1 and rows floor(y1)..ceil(y2)-1.
        labels: R names, each drawn in its own colour (`colour_of`); "" is drawn without text.
        scores: R scores, written next to the names.
        masks: (R, H, W) bool, or R `BitMasks` of the image's size on the CPU; these are drawn one by one.
        min_side_px: magnify images with a shorter side than this, so that text is readable, pixels.

    Returns:
        (zoom * H, zoom * W, 3) uint8 RGB, with the zoom of `zoom_for`.

    Raises:
        InvalidValue: shapes or types do not match, or boxes are not finite.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    _check(image, boxes, labels, scores, masks)
    zoom = zoom_for(image.shape[0], image.shape[1], min_side_px)
    canvas = magnify(image, zoom)
    height, width = canvas.shape[:2]
    extents = [_covered(box * zoom, height, width) for box in boxes]
    stroke_px = max(1, round(min(height, width) / 300))

    # the largest first: smaller instances, which are mostly in front, stay visible
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = [int(i) for i in np.argsort(-areas, kind="stable")]
    if masks is not None:
        for i in order:
            bits, left, top = masks.window(i) if isinstance(masks, BitMasks) else (masks[i], 0, 0)
            _paint_mask(canvas, np.asarray(bits), (left, top), zoom, colour_of(labels[i]), stroke_px)
    for i in order:
        _paint_outline(canvas, extents[i], colour_of(labels[i]), stroke_px)
    texts = [name if scores is None else f"{name} {scores[i]:.2f}" for i, name in enumerate(labels)]
    return _paint_labels(canvas, [(extents[i], texts[i], colour_of(labels[i])) for i in order])


def zoom_for(height: int, width: int, min_side_px: int) -> int:
    """Compute how many times an image is magnified.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        min_side_px: what the shorter side should have, pixels.

    Returns:
        The smallest factor that gives `min_side_px`, but never one that makes the longer side exceed
        `MAX_MAGNIFIED_PX`: long thin images would become huge. At least 1.
    """
    return max(1, min(math.ceil(min_side_px / min(height, width)), MAX_MAGNIFIED_PX // max(height, width)))


def magnify(image: Pixels, zoom: int) -> Pixels:
    """Return a copy of an image, `zoom` times as large, by bicubic interpolation."""
    if zoom == 1:
        return np.array(image, dtype=np.uint8, order="C")
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def colour_of(name: str) -> Colour:
    """Return a bright RGB colour computed from a name: a class has the same one in all images and runs."""
    # not hash(), which is salted in every process, and not crc32, which gives short names similar hues
    digest = int.from_bytes(hashlib.md5(name.encode(), usedforsecurity=False).digest(), "big")
    hue = digest % 360 / 360
    saturation = 0.65 + 0.35 * (digest >> 16 & 0xFF) / 0xFF
    value = 0.75 + 0.25 * (digest >> 24 & 0xFF) / 0xFF
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def readable_on(background: Colour) -> Colour:
    """Return black or white, whichever contrasts more with the background by WCAG's relative luminance."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # contrast is (lighter + 0.05) / (darker + 0.05): equal for black and white at sqrt(1.05 * 0.05) - 0.05
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


@lru_cache(maxsize=16)
def load_font(size_px: int) -> Font:
    """Return Pillow's default font at a size in pixels."""
    return ImageFont.load_default(size_px)


def _check(
    image: Pixels,
    boxes: npt.NDArray[np.float64],
    labels: Sequence[str],
    scores: Sequence[float] | None,
    masks: Bits | BitMasks | None,
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidValue(f"the image is {image.dtype} {image.shape}: give uint8 (H, W, 3) in RGB")
    count = len(boxes)
    if len(labels) != count or (scores is not None and len(scores) != count):
        num_scores = "no" if scores is None else len(scores)
        raise InvalidValue(
            f"{count} boxes came with {len(labels)} labels and {num_scores} scores: give one of each per box"
        )
    expected = (count, *image.shape[:2])
    shape = (len(masks), *masks.image_size) if isinstance(masks, BitMasks) else getattr(masks, "shape", expected)
    dtype = np.bool_ if masks is None or isinstance(masks, BitMasks) else masks.dtype
    if dtype != np.bool_ or shape != expected:
        raise InvalidValue(
            f"masks are {np.dtype(dtype)} {shape}, but must be bool {expected}: paste them into the image first"
        )
    if not np.isfinite(boxes).all():
        not_finite = np.flatnonzero(~np.isfinite(boxes).all(1))
        raise InvalidValue(f"boxes {not_finite[:5].tolist()} are not finite: remove them before drawing")


def _covered(box: npt.NDArray[np.float64], height: int, width: int) -> PixelBox | None:
    """Pixels of the image that a box touches; None if there are none."""
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    return PixelBox(left, top, right, bottom) if left < right and top < bottom else None


def _paint_mask(canvas: Pixels, mask: Bits, corner: tuple[int, int], zoom: int, colour: Colour, stroke_px: int) -> None:
    """Tint the mask and draw its contour inside it: no pixel outside the mask changes.

    `mask` is a part of the image that begins at `corner`, x y. What is made here is no larger than the mask.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    left, top = zoom * (corner[0] + int(columns[0])), zoom * (corner[1] + int(rows[0]))
    bits = mask.repeat(zoom, axis=0).repeat(zoom, axis=1).astype(np.uint8)
    # a border of zeros: if the image's edge cuts a mask, its contour runs along that edge
    inner = cv2.erode(np.pad(bits, stroke_px), np.ones((3, 3), np.uint8), iterations=stroke_px)
    inner = inner[stroke_px:-stroke_px, stroke_px:-stroke_px]
    window = canvas[top : top + bits.shape[0], left : left + bits.shape[1]]
    inside = bits.astype(bool)
    contour = inside & (inner == 0)
    for channel, level in enumerate(colour):
        plane = window[..., channel]
        tinted = np.rint((1 - MASK_OPACITY) * np.arange(256) + MASK_OPACITY * level).astype(np.uint8)
        plane[inside] = tinted[plane[inside]]
        plane[contour] = level


def _paint_outline(canvas: Pixels, extent: PixelBox | None, colour: Colour, stroke_px: int) -> None:
    if extent is None:
        return
    rows, columns = slice(extent.top, extent.bottom), slice(extent.left, extent.right)
    # slices of the box's window: a stroke thicker than the box stays inside it
    window = canvas[rows, columns]
    window[:stroke_px], window[-stroke_px:] = colour, colour
    window[:, :stroke_px], window[:, -stroke_px:] = colour, colour


def _paint_labels(canvas: Pixels, labels: Sequence[tuple[PixelBox | None, str, Colour]]) -> Pixels:
    """Write labels (extent of the box, text, colour), in the reverse order, next to their boxes."""
    height, width = canvas.shape[:2]
    font = load_font(min(24, max(11, round(min(height, width) / 34))))
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    # all labels have the same height, with or without ascenders and descenders
    text_box = pen.textbbox((0, 0), "Agj", font=font)
    label_height = math.ceil(text_box[3] - text_box[1]) + 2 * LABEL_PADDING_PX
    occupied: list[PixelBox] = []
    # the smallest first: they have the fewest possible places
    for extent, text, colour in reversed(labels):
        if extent is None or not text:
            continue
        label_width = math.ceil(pen.textlength(text, font=font)) + 2 * LABEL_PADDING_PX
        place = _place_label(extent, label_width, label_height, PixelBox(0, 0, width, height), occupied)
        occupied.append(place)
        pen.rectangle((place.left, place.top, place.right - 1, place.bottom - 1), fill=colour)
        corner = (place.left + LABEL_PADDING_PX, place.top + LABEL_PADDING_PX - text_box[1])
        pen.text(corner, text, fill=readable_on(colour), font=font)
    return np.array(picture, dtype=np.uint8)


def _place_label(
    extent: PixelBox, label_width: int, label_height: int, frame: PixelBox, occupied: Sequence[PixelBox]
) -> PixelBox:
    """The first free place of: above the box, below it, at its top, at its bottom; left before right."""
    places = []
    for top in (extent.top - label_height, extent.bottom, extent.top, extent.bottom - label_height):
        for left in (extent.left, extent.right - label_width):
            # moved into the image; a label wider than the image shows its beginning
            x = max(0, min(left, frame.right - label_width))
            y = max(0, min(top, frame.bottom - label_height))
            right, bottom = min(frame.right, x + label_width), min(frame.bottom, y + label_height)
            places.append(PixelBox(x, y, right, bottom))
    free = (place for place in places if not any(place.overlaps(other) for other in occupied))
    return next(free, places[0])
