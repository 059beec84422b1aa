"""Boxes and outlines as COCO writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

CIRCLE_POINTS = 64  # a multiple of four, so that the outline of a circle reaches its box


def box_of(polygons: Iterable[Sequence[float]]) -> list[float]:
    """The smallest box around polygons.

    Args:
        polygons: each x1, y1, x2, y2, ..., pixels; at least one point in all.

    Returns:
        x, y, width, height, pixels.
    """
    polygons = list(polygons)
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def ellipse(cx: float, cy: float, rx: float, ry: float, theta: float = 0.0) -> list[float]:
    """The outline of an ellipse.

    Args:
        cx: centre, pixels.
        cy: centre, pixels.
        rx: half-axis before rotation, pixels.
        ry: half-axis before rotation, pixels.
        theta: rotation, radians.

    Returns:
        A polygon of `CIRCLE_POINTS` points on the ellipse: x1, y1, x2, y2, ...
    """
    flat: list[float] = []
    for i in range(CIRCLE_POINTS):
        angle = 2 * math.pi * i / CIRCLE_POINTS
        x, y = rx * math.cos(angle), ry * math.sin(angle)
        flat.append(cx + x * math.cos(theta) - y * math.sin(theta))
        flat.append(cy + x * math.sin(theta) + y * math.cos(theta))
    return flat


def encoded(mask: np.ndarray) -> tuple[dict[str, Any], list[float], float]:
    """A mask as COCO's RLE.

    Args:
        mask: (H, W) bool, at least one pixel set.

    Returns:
        The RLE with text counts, its box (x, y, width, height, pixels) and its area, pixels.
    """
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    box = [float(v) for v in coco_mask.toBbox(rle)]
    area = float(coco_mask.area(rle))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}, box, area
