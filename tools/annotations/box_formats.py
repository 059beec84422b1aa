"""Boxes in another format than COCO's x, y, width, height, and boxes that contradict their outlines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from .checks import Checked, add_rows
from .findings import Findings, Severity
from .table import clipped

BoxFormat = Literal["auto", "xywh", "xyxy", "cxcywh", "xywh_fraction", "xyxy_fraction", "cxcywh_fraction", "outline"]
TOLERANCE_PX, TOLERANCE = 2.0, 0.1  # a corner may be off by this much, or by this fraction of the outline's longer side
BEYOND_PX = 1.0  # boxes may stick out of their image by this much without a warning


def _xyxy(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _cxcywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)


# how to read four numbers; those of fractions are multiplied by the image's sides first
READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"xywh": np.asarray, "xyxy": _xyxy, "cxcywh": _cxcywh}


def read_as(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> np.ndarray:
    """Read boxes of a format.

    Args:
        boxes: (R, 4) the numbers of the file.
        sizes: (R, 2) height, width of the image of each box, pixels.
        box_format: "xywh", "xyxy", "cxcywh" (centre first), or one of these with "_fraction".

    Returns:
        (R, 4) x, y, width, height, pixels.
    """
    reading = box_format.removesuffix("_fraction")
    if reading != box_format:
        boxes = boxes * np.tile(sizes[:, ::-1], 2)
    return READINGS[reading](boxes)


def check_box_format(checked: Checked, box_format: BoxFormat, findings: Findings) -> None:
    """Read the boxes in the format that the settings give, or check that they look like COCO's.

    With "auto", data are refused where more than half of the boxes fit another format better; fewer give a warning, and
    so do boxes that contradict their outlines in every format.

    Args:
        checked: the objects; their boxes are converted.
        box_format: the setting `data.box_format`.
        findings: where problems are reported.
    """
    given = checked.used & ~np.isnan(checked.columns.boxes).any(axis=1)
    has_outline = ~np.isnan(checked.extents).any(axis=1) & (checked.extents[:, 2:] > 0).any(axis=1)
    if box_format == "outline":
        rows = given & has_outline
        checked.boxes[rows] = checked.extents[rows]
        add_rows(findings, "note", "box taken from the outline (data.box_format: outline)", rows, checked.columns)
    elif box_format not in ("auto", "xywh"):
        checked.boxes[given] = read_as(checked.columns.boxes[given], checked.sizes[given], box_format)
        add_rows(findings, "note", f"bbox read as {box_format} (data.box_format)", given, checked.columns)
    objects = given & ~checked.columns.crowd & (checked.sizes > 0).all(axis=1)
    refuse = box_format == "auto"
    wrong = _check_outlines(checked, objects & has_outline, findings, refuse)
    rest = objects & ~(has_outline & ~wrong)
    fractions = _check_fractions(checked, rest & ~wrong, int(objects.sum()), findings, refuse)
    _check_edges(checked, rest & ~wrong & ~fractions, objects, findings, refuse)


def _check_outlines(checked: Checked, rows: np.ndarray, findings: Findings, refuse: bool) -> np.ndarray:
    """Compare boxes with the boxes of outlines; the rows (M,) that disagree."""
    indices = np.flatnonzero(rows)
    expected, sizes = checked.extents[indices], checked.sizes[indices]
    far = ~_fits(checked.boxes[indices], expected, sizes)
    wrong = np.zeros(len(rows), dtype=bool)
    wrong[indices[far]] = True
    if not far.any():
        return wrong
    numbers = checked.columns.boxes[indices][far]
    names = [reading + suffix for suffix in ("", "_fraction") for reading in READINGS]
    fitting = {name: int(_fits(read_as(numbers, sizes[far], name), expected[far], sizes[far]).sum()) for name in names}
    best = max(names, key=lambda name: fitting[name])
    another_fits = fitting[best] > 0.5 * far.sum()
    fix = "correct them, or set data.box_format: outline"
    if another_fits:
        fix = (
            f"{fitting[best]:,} of them fit if read as {best}: set data.box_format: {best}; data.box_format: xywh "
            "takes them as they are"
        )
    add_rows(
        findings,
        "refused" if refuse and another_fits and far.sum() > 0.5 * len(indices) else "warning",
        f"box and outline disagree (of {len(indices):,} with both; box, then box of the outline)",
        wrong,
        checked.columns,
        fix=fix,
        came=np.concatenate([checked.columns.boxes, checked.extents], axis=1),
    )
    return wrong


def _fits(boxes: np.ndarray, expected: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes agree with others inside their images, (R,) bool."""
    difference = np.abs(clipped(boxes, sizes) - clipped(expected, sizes)).max(axis=1, initial=0)
    return np.asarray(difference <= np.maximum(TOLERANCE_PX, TOLERANCE * expected[:, 2:].max(axis=1, initial=0)))


def _check_fractions(checked: Checked, rows: np.ndarray, total: int, findings: Findings, refuse: bool) -> np.ndarray:
    """Report boxes inside one pixel, which look like fractions of the image; returns their rows (M,)."""
    boxes = checked.boxes
    with np.errstate(invalid="ignore"):
        tiny = rows & (boxes >= 0).all(axis=1) & (boxes <= 1).all(axis=1) & (checked.sizes.min(axis=1) > 2)
    severity: Severity = "refused" if refuse and tiny.sum() > 0.5 * total else "warning"
    fix = (
        "set data.box_format: xywh_fraction, xyxy_fraction or cxcywh_fraction, or multiply them by the image's width "
        "and height; data.box_format: xywh takes them as they are"
    )
    add_rows(
        findings, severity, "box that looks like fractions of the image", tiny, checked.columns, fix=fix, came=boxes
    )
    return tiny


def _check_edges(checked: Checked, rows: np.ndarray, objects: np.ndarray, findings: Findings, refuse: bool) -> None:
    """Report boxes that stick out of their image; corners taken for widths do."""
    limits: np.ndarray = np.tile(checked.sizes[:, ::-1], 2) + BEYOND_PX
    corners = np.concatenate([checked.boxes[:, :2], checked.boxes[:, :2] + checked.boxes[:, 2:]], axis=1)
    with np.errstate(invalid="ignore"):
        outside: np.ndarray = objects & ((corners > limits) | (corners < -BEYOND_PX)).any(axis=1)
        as_corners = checked.columns.boxes
        in_order = as_corners[:, 2:] > as_corners[:, :2]
        is_corner = np.concatenate([as_corners <= limits, in_order], axis=1).all(axis=1)
    suspect = rows & outside
    if suspect.sum() > 0.5 * objects.sum() and bool((is_corner | ~rows).all()):
        add_rows(
            findings,
            "refused" if refuse else "warning",
            "box that sticks out of its image, but fits if read as corners x1, y1, x2, y2",
            suspect,
            checked.columns,
            fix="set data.box_format: xyxy; data.box_format: xywh takes them as they are",
            came=checked.columns.boxes,
        )
        outside = outside & ~suspect
    add_rows(
        findings,
        "warning",
        "box that sticks out of its image, clipped for training",
        outside,
        checked.columns,
        fix="check the size of the image in the file",
        came=checked.boxes,
    )
