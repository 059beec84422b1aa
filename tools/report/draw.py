"""Instances drawn on their image: boxes, masks, names and scores.

R instances; images are (H, W, 3) uint8 RGB. Everything is drawn at `zoom` times the image's size, a whole
number, so that the edge between two pixels of the image stays an edge between two pixels of the drawing.
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

from resnet_backbone.errors import InvalidValue

Pixels = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Colour = tuple[int, int, int]

MASK_OPACITY = 0.45
LABEL_PADDING_PX = 2


@dataclass(frozen=True)
class PixelBox:
    """Whole pixels: columns left..right-1, rows top..bottom-1."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: PixelBox) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def draw_instances(
    image: Pixels,
    boxes: npt.NDArray[np.floating],
    labels: Sequence[str],
    *,
    scores: Sequence[float] | None = None,
    masks: Bits | None = None,
    min_side_px: int = 0,
) -> Pixels:
    """A new image with R instances drawn on it; the one given stays as it is.

    boxes: (R, 4) xyxy, pixels of `image`: x1..x2 covers columns floor(x1)..ceil(x2)-1, the outline within.
    labels: R names, each with a colour of its own that is the same in every image; "" is not written.
    masks: (R, H, W) bool. min_side_px: a smaller image is magnified first, for its text to be read.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    _check(image, boxes, labels, scores, masks)
    zoom = max(1, math.ceil(min_side_px / min(image.shape[:2])))
    canvas = magnify(image, zoom)
    height, width = canvas.shape[:2]
    spans = [_covered(box * zoom, height, width) for box in boxes]
    stroke_px = max(1, round(min(height, width) / 300))

    # the largest first, so that what lies in front of it, mostly smaller, stays in sight
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = [int(i) for i in np.argsort(-areas, kind="stable")]
    if masks is not None:
        for i in order:
            _paint_mask(canvas, masks[i], zoom, colour_of(labels[i]), stroke_px)
    for i in order:
        _paint_outline(canvas, spans[i], colour_of(labels[i]), stroke_px)
    texts = [name if scores is None else f"{name} {scores[i]:.2f}" for i, name in enumerate(labels)]
    return _paint_labels(canvas, [(spans[i], texts[i], colour_of(labels[i])) for i in order])


def magnify(image: Pixels, zoom: int) -> Pixels:
    """A copy, `zoom` times as large."""
    if zoom == 1:
        return np.array(image, dtype=np.uint8, order="C")
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def colour_of(name: str) -> Colour:
    """A bright colour made of the name alone, so that a class keeps it from image to image and run to run."""
    # not hash(): Python salts that in every process; nor crc32, which gives short names neighbouring hues
    digest = int.from_bytes(hashlib.md5(name.encode(), usedforsecurity=False).digest(), "big")
    hue = digest % 360 / 360
    saturation = 0.65 + 0.35 * (digest >> 16 & 0xFF) / 0xFF
    value = 0.75 + 0.25 * (digest >> 24 & 0xFF) / 0xFF
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def readable_on(background: Colour) -> Colour:
    """Black or white, whichever has the greater contrast with the background (WCAG's relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # contrast is (lighter + 0.05) / (darker + 0.05): black and white draw level at sqrt(1.05 * 0.05) - 0.05
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


@lru_cache(maxsize=16)
def load_font(size_px: int) -> Font:
    return ImageFont.load_default(size_px)


def _check(
    image: Pixels,
    boxes: npt.NDArray[np.float64],
    labels: Sequence[str],
    scores: Sequence[float] | None,
    masks: Bits | None,
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidValue(f"the image is {image.dtype} {image.shape}, wanted uint8 (H, W, 3) in RGB")
    count = len(boxes)
    if len(labels) != count or (scores is not None and len(scores) != count):
        num_scores = "no" if scores is None else len(scores)
        raise InvalidValue(
            f"{count} boxes came with {len(labels)} labels and {num_scores} scores: give each box one of each"
        )
    if masks is not None and (masks.dtype != np.bool_ or masks.shape != (count, *image.shape[:2])):
        raise InvalidValue(
            f"masks are {masks.dtype} {masks.shape}, wanted bool {(count, *image.shape[:2])}: "
            "paste them into the image's own pixels"
        )
    if not np.isfinite(boxes).all():
        broken = np.flatnonzero(~np.isfinite(boxes).all(1))
        raise InvalidValue(f"boxes {broken[:5].tolist()} are not finite: drop them before drawing")


def _covered(box: npt.NDArray[np.float64], height: int, width: int) -> PixelBox | None:
    """The pixels that a box touches, as far as they are in the image; None where there are none."""
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    return PixelBox(left, top, right, bottom) if left < right and top < bottom else None


def _paint_mask(canvas: Pixels, mask: Bits, zoom: int, colour: Colour, stroke_px: int) -> None:
    """Tints the mask and draws its contour within it: no pixel outside the mask changes."""
    bits = mask.repeat(zoom, axis=0).repeat(zoom, axis=1).astype(np.uint8)
    # a border of zeros: where a mask is cut by the image's edge, its contour runs along that edge
    inner = cv2.erode(np.pad(bits, stroke_px), np.ones((3, 3), np.uint8), iterations=stroke_px)
    inner = inner[stroke_px:-stroke_px, stroke_px:-stroke_px]
    inside = bits.astype(bool)
    tinted = (1 - MASK_OPACITY) * canvas[inside] + MASK_OPACITY * np.array(colour)
    canvas[inside] = np.rint(tinted).astype(np.uint8)
    canvas[inside & (inner == 0)] = colour


def _paint_outline(canvas: Pixels, span: PixelBox | None, colour: Colour, stroke_px: int) -> None:
    if span is None:
        return
    rows, columns = slice(span.top, span.bottom), slice(span.left, span.right)
    # slices of the box's own pixels: a stroke thicker than the box cannot leave it
    window = canvas[rows, columns]
    window[:stroke_px], window[-stroke_px:] = colour, colour
    window[:, :stroke_px], window[:, -stroke_px:] = colour, colour


def _paint_labels(canvas: Pixels, tagged: Sequence[tuple[PixelBox | None, str, Colour]]) -> Pixels:
    height, width = canvas.shape[:2]
    font = load_font(min(24, max(11, round(min(height, width) / 34))))
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    # one height for all labels, whichever letters they have
    ascent_box = pen.textbbox((0, 0), "Agj", font=font)
    label_height = math.ceil(ascent_box[3] - ascent_box[1]) + 2 * LABEL_PADDING_PX
    taken: list[PixelBox] = []
    # the smallest first: their places are the fewest
    for span, text, colour in reversed(tagged):
        if span is None or not text:
            continue
        label_width = math.ceil(pen.textlength(text, font=font)) + 2 * LABEL_PADDING_PX
        place = _place_label(span, label_width, label_height, PixelBox(0, 0, width, height), taken)
        taken.append(place)
        pen.rectangle((place.left, place.top, place.right - 1, place.bottom - 1), fill=colour)
        corner = (place.left + LABEL_PADDING_PX, place.top + LABEL_PADDING_PX - ascent_box[1])
        pen.text(corner, text, fill=readable_on(colour), font=font)
    return np.array(picture, dtype=np.uint8)


def _place_label(
    span: PixelBox, label_width: int, label_height: int, frame: PixelBox, taken: Sequence[PixelBox]
) -> PixelBox:
    """The first free of: above the box, below it, within its top, within its bottom; left before right."""
    places = []
    for top in (span.top - label_height, span.bottom, span.top, span.bottom - label_height):
        for left in (span.left, span.right - label_width):
            # pushed into the image; a label wider than the image keeps its beginning
            x = max(0, min(left, frame.right - label_width))
            y = max(0, min(top, frame.bottom - label_height))
            right, bottom = min(frame.right, x + label_width), min(frame.bottom, y + label_height)
            places.append(PixelBox(x, y, right, bottom))
    free = (place for place in places if not any(place.overlaps(other) for other in taken))
    return next(free, places[0])
