"""Outlines of the forms of the "shapes" data set, and their rasterisation.

Glossary: H, W an image's height and width in pixels, V vertices of a polygon. Coordinates are continuous, as in COCO:
pixel i covers [i, i + 1].
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

# not contiguous, as in COCO: code that uses category ids as labels fails on this data set too
CATEGORY_IDS: dict[str, int] = {"circle": 1, "triangle": 2, "square": 4, "star": 7, "cross": 9}
FORMS: tuple[str, ...] = tuple(CATEGORY_IDS)

# subpixels per pixel and axis; fillPoly also fills the subpixels that an edge touches, which adds 1/16 px on each side
SUPERSAMPLING = 8

Floats: TypeAlias = npt.NDArray[np.float32]
Doubles: TypeAlias = npt.NDArray[np.float64]


def unit_outline(form: str) -> Doubles:
    """Return the outline of a form in the unit circle.

    Args:
        form: one of `FORMS`.

    Returns:
        (V, 2) xy vertices, of which the farthest have distance 1 from the origin.
    """
    if form == "cross":
        arm = 0.32
        end = (1 - arm**2) ** 0.5
        x = [arm, arm, -arm, -arm, -end, -end, -arm, -arm, arm, arm, end, end]
        return np.stack([x, np.roll(x, 3)], axis=1)
    vertices = {"circle": 48, "triangle": 3, "square": 4, "star": 10}[form]
    angles = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    radii = np.where(np.arange(vertices) % 2, 0.45 if form == "star" else 1.0, 1.0)
    return np.asarray(points_on_circle(angles) * radii[:, None])


def points_on_circle(angles: Doubles) -> Doubles:
    """Return the points of the unit circle at V angles in radians, (V, 2) xy."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def random_rotation(rng: np.random.Generator) -> Doubles:
    """Draw a rotation matrix, (2, 2)."""
    angle = rng.uniform(0, 2 * np.pi)
    return points_on_circle(np.array([angle, angle + np.pi / 2]))


def random_outline(form: str, centre: Doubles, radius_px: float, rng: np.random.Generator) -> Doubles:
    """Draw a random affine copy of a form's outline.

    The outline is rotated, and stretched along a random direction to an aspect ratio of 0.8 to 1.25. The stretch keeps
    its area.

    Args:
        form: one of `FORMS`.
        centre: (2,) xy, pixels.
        radius_px: radius of the circle around the form before it is stretched, pixels.
        rng: source of the random numbers.

    Returns:
        (V, 2) xy, pixels, rounded to 0.01 px: the annotation has the same vertices as the drawing.
    """
    stretch = 0.8 ** rng.uniform(-0.5, 0.5)
    points = unit_outline(form) @ random_rotation(rng) * (stretch, 1 / stretch) @ random_rotation(rng)
    return np.asarray(np.round(points * radius_px + centre, 2))


def polygon_area(polygon: Doubles) -> float:
    """Return the area of a polygon, (V, 2) xy, by the shoelace formula."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def coverage_of(polygon: Doubles, *, height: int, width: int) -> Floats:
    """Rasterise a polygon with antialiasing.

    Args:
        polygon: (V, 2) xy, pixels; may lie outside the image in part or as a whole.
        height: height of the image, pixels.
        width: width of the image, pixels.

    Returns:
        (H, W) fraction of each pixel inside the polygon, 0..1.
    """
    coverage = np.zeros((height, width), np.float32)
    x1, y1 = np.maximum(np.floor(polygon.min(axis=0)), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(polygon.max(axis=0)), (width, height)).astype(int)
    if x1 < x2 and y1 < y2:
        subpixels = np.zeros(((y2 - y1) * SUPERSAMPLING, (x2 - x1) * SUPERSAMPLING), np.uint8)
        # OpenCV's coordinates start at the centre of the first subpixel (- 0.5) and have 4 fractional bits (* 16)
        vertices = np.round(((polygon - (x1, y1)) * SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(subpixels, [vertices], 255, shift=4)
        resized = cv2.resize(subpixels, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
        coverage[y1:y2, x1:x2] = resized / 255.0
    return coverage
