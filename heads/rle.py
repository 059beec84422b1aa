"""COCO's compressed run lengths, computed from the part of every mask that is not empty.

A `Columns` holds that part: the pixels down every column, with an unset one before the first and after the last, so
that no run goes on into the next column. One pass over all masks joins the runs and writes the text, because each
call of numpy costs as much as a small mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

Rle = dict[str, Any]  # COCO's run lengths: {"size": [H, W], "counts": str}
_MANY_CHANGES = 2**18  # starts and ends of runs that are held at once, 2 MiB


class Columns(NamedTuple):
    """The part of a mask outside which it is empty.

    Attributes:
        pixels: (w, h + 2) bool, one row per column of the image; its first and its last column are unset.
        left: column of the image where it begins.
        top: row of the image where it begins.
    """

    pixels: np.ndarray
    left: int
    top: int


def columns_of(window: np.ndarray, left: int, top: int) -> Columns:
    """Turn a window into columns.

    Args:
        window: (h, w) bool.
        left: column of the image where it begins.
        top: row of the image where it begins.

    Returns:
        Its columns.
    """
    pixels = np.zeros((window.shape[1], window.shape[0] + 2), dtype=bool)
    pixels[:, 1:-1] = window.T
    return Columns(pixels, left, top)


def encode_columns(masks: Iterable[Columns], height: int, width: int) -> list[Rle]:
    """Convert masks to COCO's compressed run lengths.

    Args:
        masks: R masks; each is dropped before the next one is asked for.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        R run lengths, equal to pycocotools' for the whole masks, with `counts` as text, because JSON does not hold
        bytes.
    """
    return [{"size": [height, width], "counts": text} for text in _texts(masks, height, width)]


def _texts(masks: Iterable[Columns], height: int, width: int) -> Iterator[str]:
    changes: list[np.ndarray] = []
    places: list[tuple[int, int, int]] = []
    held = 0
    for pixels, left, top in masks:
        flat = pixels.reshape(-1)
        changes.append(np.flatnonzero(flat[1:] != flat[:-1]))  # starts and ends of runs, alternately
        places.append((pixels.shape[1], left, top))
        held += len(changes[-1])
        if held > _MANY_CHANGES:
            yield from _compress(*_counts(changes, places, height, width))
            changes, places, held = [], [], 0
    if places:
        yield from _compress(*_counts(changes, places, height, width))


def _counts(
    changes: list[np.ndarray], places: list[tuple[int, int, int]], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Run lengths of R masks in one array, unset pixels first, and how many each mask has, (R,)."""
    owner = np.repeat(np.arange(len(places)), [len(change) for change in changes])
    column_height, left, top = np.array(places, dtype=np.int64)[owner].reshape(-1, 3).T
    columns, rows = np.divmod(np.concatenate(changes), column_height)
    # every mask begins beyond the end of the one before
    pixels = height * width
    ends = (left + columns) * height + top + rows + owner * (pixels + 1)
    # runs that meet over the edge of the image are one
    meets = np.flatnonzero(ends[1:-1:2] == ends[2::2])
    apart = np.ones(len(ends), dtype=bool)
    apart[2 * meets + 1] = apart[2 * meets + 2] = False
    ends, owner = ends[apart], owner[apart]
    # with the beginning and the end of every mask
    sizes = np.bincount(owner, minlength=len(places)) + 2
    stops = np.cumsum(sizes)
    starts = stops - sizes
    bounds = np.empty(stops[-1], dtype=np.int64)
    inner = np.ones(len(bounds), dtype=bool)
    inner[starts] = inner[stops - 1] = False
    bounds[inner] = ends
    bounds[starts] = np.arange(len(places)) * (pixels + 1)
    bounds[stops - 1] = bounds[starts] + pixels
    lengths = np.diff(bounds)
    kept = np.ones(len(lengths), dtype=bool)
    kept[stops[:-1] - 1] = False  # from the end of a mask to the beginning of the next
    ends_set = (lengths[stops - 2] == 0) & (sizes > 2)  # the last pixel is set
    kept[(stops - 2)[ends_set]] = False
    return lengths[kept], sizes - 1 - ends_set


def _compress(counts: np.ndarray, sizes: np.ndarray) -> Iterator[str]:
    """The text of pycocotools: from the fourth on, the difference to the length before the last.

    Five bits a character from the lowest up, with a sixth one where more follow; the highest one is the sign.

    Args:
        counts: run lengths of R masks, one after another.
        sizes: (R,) how many each mask has; at least one.

    Yields:
        R texts.
    """
    stops = np.cumsum(sizes)
    index = np.arange(len(counts)) - np.repeat(stops - sizes, sizes)
    values = counts.copy()
    values[2:] -= np.where(index[2:] > 2, counts[:-2], 0)
    characters, present = [], [np.ones(len(values), dtype=bool)]
    while present[-1].any():
        low = values & 31
        values = values >> 5
        follows = present[-1] & (values != np.where(low & 16, -1, 0))
        characters.append((low + 32 * follows + 48).astype(np.uint8))
        present.append(follows)
    used = np.stack(present[:-1], axis=1)
    text = np.stack(characters, axis=1)[used].tobytes().decode("ascii")
    start = 0
    for stop in np.cumsum(used.sum(axis=1))[stops - 1].tolist():
        yield text[start:stop]
        start = stop
