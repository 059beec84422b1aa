"""Outlines of objects: run lengths are checked and decoded, and the geometry of many polygons is computed at once.

Glossary: P parts (polygons) of all objects together, V their vertices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .entries import Malformed
from .json_file import Rle

CHUNK = 1 << 20  # vertices that are looked at together
# pycocotools rasterises at five times the size and needs some 16 bytes per step: this perimeter takes 320 MB
MAX_PERIMETER_PX = 4e6
LOW_BITS, CONTINUES, SIGN = 0x1F, 0x20, 0x10


def decode_runs(rle: Rle, height: int, width: int) -> np.ndarray:
    """Decode the run lengths of a mask, and check that they fill the image.

    Args:
        rle: the run lengths as in the file.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        (S,) uint32: the runs down the columns, zeros first.

    Raises:
        Malformed: the size is another one, the text is damaged, a run is negative, or the runs do not fill the image.
    """
    if rle.size is not None and tuple(rle.size) != (height, width):
        swapped = " (height and width are swapped)" if tuple(rle.size) == (width, height) else ""
        raise Malformed(
            "RLE of another size than its image",
            f"size {list(rle.size)}, image [{height}, {width}]{swapped}",
            "write the mask at the size of the image, [height, width]",
        )
    counts = _from_text(rle.counts) if isinstance(rle.counts, str) else _from_list(rle.counts)
    if (counts < 0).any():
        raise Malformed("RLE with a negative run", counts[:8].tolist(), "make the mask again")
    total = int(counts.sum()) if len(counts) else 0
    if total != height * width:
        raise Malformed(
            "RLE whose runs do not fill the image",
            f"{total} of {height * width} pixels",
            "make the mask again, at the size of the image",
        )
    return counts.astype(np.uint32)


def _from_list(counts: list[int]) -> np.ndarray:
    try:
        runs = np.asarray(counts, dtype=np.int64)
    except OverflowError:
        raise Malformed("RLE with a run beyond any image", counts, "make the mask again") from None
    if len(runs) and np.abs(runs).max() >= 2**31:  # their sum could overflow
        raise Malformed("RLE with a run beyond any image", counts, "make the mask again")
    return runs


def _from_text(text: str) -> np.ndarray:
    """Decode COCO's compressed counts: groups of 5 bits, low ones first; from the third on, differences to two before.

    Source: the format of `rleToString` in COCO's maskApi.c.
    """
    damaged = Malformed("RLE whose text is damaged", text, "make the mask again, or write its counts as a list")
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise damaged from None
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & CONTINUES:
        raise damaged
    last = np.flatnonzero((codes & CONTINUES) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:  # more than 32 bits
        raise damaged
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, last - first + 1))
    values = np.add.reduceat((codes & LOW_BITS) << shifts, first)
    negative = (codes[last] & SIGN) != 0
    values[negative] -= 1 << (5 * (last - first + 1)[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if np.abs(values).max() >= 2**31:
        raise damaged
    return values


def rle_dict(runs: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """Make COCO's run lengths.

    Args:
        runs: (S,) as from `decode_runs`.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        {"size": [height, width], "counts": list}.
    """
    return {"size": [int(height), int(width)], "counts": runs.tolist()}


def box_of_runs(runs: np.ndarray, height: int) -> tuple[float, float, float, float] | None:
    """The smallest box around a mask.

    Args:
        runs: (S,) as from `decode_runs`.
        height: of the image, pixels.

    Returns:
        x, y, width, height in pixels; None for a mask without pixels.
    """
    ends = np.cumsum(runs, dtype=np.int64)
    starts = ends - runs
    starts, ends = starts[1::2], ends[1::2] - 1
    filled = ends >= starts
    starts, ends = starts[filled], ends[filled]
    if not len(starts):
        return None
    left, right = int(starts[0] // height), int(ends[-1] // height)
    top, bottom = int((starts % height).min()), int((ends % height).max())
    if (starts // height != ends // height).any():  # such a run goes through the bottom and the top of the image
        top, bottom = 0, height - 1
    return float(left), float(top), float(right - left + 1), float(bottom - top + 1)


def part_chunks(first_vertex: np.ndarray) -> Iterator[tuple[int, int]]:
    """Split parts into runs of about `CHUNK` vertices.

    Args:
        first_vertex: (P + 1,) offsets.

    Yields:
        First part, and the one after the last.
    """
    start, parts = 0, len(first_vertex) - 1
    while start < parts:
        stop = int(np.searchsorted(first_vertex, first_vertex[start] + CHUNK, side="right")) - 1
        stop = min(max(stop, start + 1), parts)
        yield start, stop
        start = stop


def part_extents(vertices: np.ndarray, first_vertex: np.ndarray) -> np.ndarray:
    """The smallest box around each part.

    Args:
        vertices: (V, 2) x y, pixels.
        first_vertex: (P + 1,) offsets; no part is empty.

    Returns:
        (P, 4) xyxy.
    """
    out = np.empty((len(first_vertex) - 1, 4))
    for start, stop in part_chunks(first_vertex):
        low, high = first_vertex[start], first_vertex[stop]
        points, offsets = vertices[low:high], first_vertex[start:stop] - low
        out[start:stop, :2] = np.minimum.reduceat(points, offsets)
        out[start:stop, 2:] = np.maximum.reduceat(points, offsets)
    return out


def part_areas(vertices: np.ndarray, first_vertex: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and perimeters of the parts.

    Args:
        vertices: (V, 2) x y, pixels.
        first_vertex: (P + 1,) offsets; no part is empty.

    Returns:
        (P,) signed areas by the shoelace formula, square pixels; (P,) perimeters of the closed polygons, pixels.
    """
    parts = len(first_vertex) - 1
    areas, perimeters = np.empty(parts), np.empty(parts)
    with np.errstate(all="ignore"):  # values that are not finite are reported by the caller
        for start, stop in part_chunks(first_vertex):
            low, high = first_vertex[start], first_vertex[stop]
            points, offsets = vertices[low:high], first_vertex[start:stop] - low
            following = np.arange(1, high - low + 1)
            following[first_vertex[start + 1 : stop + 1] - low - 1] = offsets  # the last vertex is joined to the first
            # relative to the part's first vertex: large coordinates lose no digits
            relative = points - np.repeat(points[offsets], np.diff(first_vertex[start : stop + 1]), axis=0)
            after = relative[following]
            cross = relative[:, 0] * after[:, 1] - after[:, 0] * relative[:, 1]
            areas[start:stop] = np.add.reduceat(cross, offsets) / 2
            steps = np.abs(after - relative).max(axis=1)
            perimeters[start:stop] = np.add.reduceat(steps, offsets)
    return areas, perimeters


def on_a_line(points: np.ndarray) -> bool:
    """Whether all vertices of a polygon lie on one line. A bow tie, whose signed area is zero too, does not.

    Args:
        points: (V, 2) x y.

    Returns:
        True for a polygon without area.
    """
    relative = points - points[0]
    far = relative[np.abs(relative).max(axis=1).argmax()]
    return bool((relative[:, 0] * far[1] == relative[:, 1] * far[0]).all())
