"""Checks of all objects at once: values, sizes, areas, and whether boxes and outlines agree.

Degenerate objects (no area, outlines of fewer than three points) are left out. Malformed ones (values that are not
finite, or far outside any image) are refused, or left out if the settings say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .columns import ColumnBuilder, Columns
from .entries import Malformed
from .findings import EXAMPLES, Findings, Severity, shortened
from .outlines import MAX_PERIMETER_PX, box_of_runs, on_a_line, part_areas, part_extents
from .table import NO_OUTLINE, POLYGONS, RUNS, Outlines, clipped

MIN_POINTS = 3
MAX_COORDINATE = 1e6  # pixels; a coordinate of a box beyond this is a mistake
WITHOUT_OUTLINE = "object without an outline, which a model with masks needs"


@dataclass
class Checked:
    """The objects of a file while they are checked.

    Attributes:
        columns: the annotations.
        sizes: (M, 2) height, width of each object's image; 0 if unknown.
        used: (M,) bool: the objects that are used so far.
        boxes: (M, 4) x, y, width, height; those that were missing are derived.
        extents: (M, 4) x, y, width, height of the outlines; NaN without one.
        polygon_areas: (M,) sums of the absolute areas of an object's polygons, square pixels.
    """

    columns: Columns
    sizes: np.ndarray
    used: np.ndarray
    boxes: np.ndarray
    extents: np.ndarray
    polygon_areas: np.ndarray

    def drop(
        self, rows: np.ndarray, what: str, findings: Findings, *, fix: str = "", came: np.ndarray | None = None
    ) -> None:
        """Leave objects out.

        Args:
            rows: (M,) bool; rows that are out already are not counted again.
            what: the kind of finding.
            findings: where it is reported.
            fix: what to do about it.
            came: (M, ...) array to show examples from.
        """
        rows = rows & self.used
        add_rows(findings, "dropped", what, rows, self.columns, fix=fix, came=came)
        self.used &= ~rows


def add_rows(
    findings: Findings,
    severity: Severity,
    what: str,
    rows: np.ndarray,
    columns: Columns,
    *,
    fix: str = "",
    came: np.ndarray | None = None,
) -> None:
    """Report a finding about several objects.

    Args:
        findings: where it is reported.
        severity: as in `Group`.
        what: the kind.
        rows: (M,) bool.
        columns: the annotations, for their names.
        fix: what to do about it.
        came: (M, ...) array to show examples from.
    """
    indices = np.flatnonzero(rows)
    for row in indices[:EXAMPLES].tolist():
        shown = None if came is None else _rounded(came[row])
        findings.add(severity, what, entry=columns.name(row), came=shown, fix=fix)
    if len(indices) > EXAMPLES:
        findings.add(severity, what, count=len(indices) - EXAMPLES, fix=fix)


def _rounded(value: np.ndarray) -> str:
    numbers = ", ".join(f"{number:.6g}" for number in np.ravel(value))
    return shortened(f"[{numbers}]")


def check_values(columns: Columns, sizes: np.ndarray, builder: ColumnBuilder) -> Checked:
    """Refuse or leave out values that are not finite or far outside, and derive missing boxes.

    Args:
        columns: the annotations.
        sizes: (N, 2) height, width of the images; 0 if unknown.
        builder: how malformed annotations are reported.

    Returns:
        The objects with their boxes.
    """
    outlines, count = columns.outlines, len(columns.object_ids)
    object_sizes = sizes[columns.images] if count else np.zeros((0, 2), dtype=np.int64)
    checked = Checked(
        columns,
        object_sizes,
        used=np.ones(count, dtype=bool),
        boxes=columns.boxes.copy(),
        extents=np.full((count, 4), np.nan),
        polygon_areas=np.zeros(count),
    )
    given = ~np.isnan(columns.boxes).all(axis=1)
    wild = given & ~(np.abs(columns.boxes) <= MAX_COORDINATE).all(axis=1)
    _reject_rows(checked, builder, wild, "bbox with a value that is not finite or beyond any image", columns.boxes)
    checked.boxes[wild] = np.nan
    _reject_wild_polygons(checked, builder)
    for row in np.flatnonzero(checked.used & (outlines.kinds == RUNS)).tolist():
        height = int(object_sizes[row, 0])
        box = box_of_runs(outlines.runs_of(row), height) if height else None
        checked.extents[row] = (np.nan, np.nan, 0, 0) if box is None else box
    derived = checked.used & ~given & ~np.isnan(checked.extents[:, 2])
    checked.boxes[derived] = checked.extents[derived]
    add_rows(builder.findings, "repaired", "missing bbox, derived from the outline", derived, columns)
    return checked


def _reject_rows(checked: Checked, builder: ColumnBuilder, rows: np.ndarray, what: str, came: np.ndarray) -> None:
    rows = rows & checked.used
    for row in np.flatnonzero(rows).tolist():
        builder.reject(checked.columns.name(row), Malformed(what, _rounded(came[row]), "correct or remove it"))
    checked.used &= ~rows


def _reject_wild_polygons(checked: Checked, builder: ColumnBuilder) -> None:
    """Find extents and areas of polygons; reject those that would take very much memory to draw."""
    outlines = checked.columns.outlines
    parts = len(outlines.first_vertex) - 1
    if not parts:
        return
    owners = np.repeat(np.arange(len(checked.used)), np.diff(outlines.first_part))
    extents = part_extents(outlines.vertices, outlines.first_vertex)
    areas, perimeters = part_areas(outlines.vertices, outlines.first_vertex)
    checked.polygon_areas = per_object(np.abs(areas), outlines, np.add)
    size = checked.sizes[owners]
    reach = np.where(size.max(axis=1) > 0, size.max(axis=1), MAX_COORDINATE)  # one image's length beyond its edges
    with np.errstate(invalid="ignore"):
        inside = (extents[:, :2] >= -reach[:, None]).all(axis=1)
        inside &= (extents[:, 2:] <= np.where(size > 0, size, 0)[:, ::-1] + reach[:, None]).all(axis=1)
        inside &= perimeters <= MAX_PERIMETER_PX
    wild = np.zeros(len(checked.used), dtype=bool)
    wild[owners[~inside]] = True
    low = per_object(extents[:, :2], outlines, np.minimum)
    high = per_object(extents[:, 2:], outlines, np.maximum)
    what = "polygon with a value that is not finite or far outside the image"
    _reject_rows(checked, builder, wild, what, np.concatenate([low, high], axis=1))
    whole = np.diff(outlines.first_part) > 0
    checked.extents[whole] = np.concatenate([low, high - low], axis=1)[whole]


def drop_degenerate(checked: Checked, findings: Findings, *, masks: bool) -> None:
    """Leave out objects without area, and with masks those without a usable outline.

    Args:
        checked: the objects.
        findings: where they are counted.
        masks: whether the model has masks. Without, an outline that cannot be used is only noted.
    """
    boxes = checked.boxes
    missing = np.isnan(boxes).any(axis=1)
    checked.drop(missing, "object whose box is missing and whose outline has no area", findings)
    empty = ~_has_area(boxes, checked.sizes)
    checked.drop(empty, "box of no area inside its image", findings, fix="correct or remove it", came=boxes)
    kinds = checked.columns.outlines.kinds
    too_few = _has_too_few_points(checked.columns)
    reasons = {
        WITHOUT_OUTLINE: (kinds == NO_OUTLINE) & ~checked.columns.crowd & ~checked.columns.ignore,
        "outline of fewer than three points": too_few,
        "outline of no area": _has_no_area(checked) & ~too_few,
    }
    for what, rows in reasons.items():
        if masks:
            checked.drop(rows, what, findings, fix="draw its outline, or train a model without masks")
        elif what != WITHOUT_OUTLINE:
            add_rows(findings, "note", f"{what}; its box is used", rows & checked.used, checked.columns)


def _has_area(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes have an area inside their images in float32, in pixels and as fractions of the image."""
    corners = clipped(boxes, sizes).astype(np.float32)
    scale = np.where(sizes > 0, sizes, 1)[:, ::-1].astype(np.float32)
    fractions = corners / np.tile(scale, 2)
    return np.asarray(((corners[:, 2:] > corners[:, :2]) & (fractions[:, 2:] > fractions[:, :2])).all(axis=1))


def _has_too_few_points(columns: Columns) -> np.ndarray:
    outlines = columns.outlines
    largest = per_object(np.diff(outlines.first_vertex), outlines, np.maximum)
    return np.asarray((outlines.kinds == POLYGONS) & (largest < MIN_POINTS))


def per_object(values: np.ndarray, outlines: Outlines, combine: np.ufunc) -> np.ndarray:
    """Combine the values of an object's polygons.

    Args:
        values: (P, ...) one value per polygon.
        outlines: the outlines of M objects.
        combine: np.add, np.maximum or np.minimum.

    Returns:
        (M, ...); zero for objects without polygons.
    """
    out = np.zeros((len(outlines.kinds), *values.shape[1:]), dtype=values.dtype)
    with_parts = np.flatnonzero(np.diff(outlines.first_part) > 0)
    if len(with_parts):
        out[with_parts] = combine.reduceat(values, outlines.first_part[:-1][with_parts])
    return out


def _has_no_area(checked: Checked) -> np.ndarray:
    """Whether an outline has no area: all vertices of each part on a line, or a mask without pixels."""
    outlines = checked.columns.outlines
    none = (outlines.kinds == RUNS) & (checked.extents[:, 2] == 0)
    for row in np.flatnonzero((outlines.kinds == POLYGONS) & (checked.polygon_areas == 0) & checked.used).tolist():
        none[row] = all(on_a_line(polygon) for polygon in outlines.polygons(row))
    return np.asarray(none)


def usable_areas(checked: Checked, findings: Findings) -> np.ndarray:
    """The areas by which COCO-eval tells small, medium and large objects.

    An area that is missing, not positive, or clearly larger than the box is computed anew: the pixels of the outline,
    or the area of the box.

    Args:
        checked: the objects.
        findings: where wrong areas are counted.

    Returns:
        (M,) float64, square pixels.
    """
    columns = checked.columns
    box_areas = checked.boxes[:, 2] * checked.boxes[:, 3]
    areas = columns.areas.copy()
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(areas) & (areas > 0) & (areas <= 1.1 * box_areas + 10)
    wrong = checked.used & ~usable & ~np.isnan(columns.areas)
    add_rows(findings, "repaired", "area that does not fit the box, computed anew", wrong, columns, came=areas)
    for row in np.flatnonzero(checked.used & ~usable).tolist():
        areas[row] = _area(checked, row, float(box_areas[row]))
    return areas


def _area(checked: Checked, row: int, box_area: float) -> float:
    from pycocotools import mask as coco

    outlines, (height, width) = checked.columns.outlines, checked.sizes[row].tolist()
    if outlines.kinds[row] == RUNS:
        return float(outlines.runs_of(row)[1::2].sum(dtype=np.int64)) or box_area
    polygons = [polygon.reshape(-1).tolist() for polygon in outlines.polygons(row)]
    if outlines.kinds[row] == NO_OUTLINE or not height or not polygons:
        return box_area
    return float(coco.area(coco.merge(coco.frPyObjects(polygons, height, width)))) or box_area
