"""The values of mask images, and what they mean in a data set."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from ..findings import BadAnnotations
from .tree import Tree

Meaning = Literal["objects", "files", "components", "classes"]
OBJECT_FOLDERS = re.compile(r"object|instance", re.IGNORECASE)
VOID = 255
COLOUR = 1 << 40  # added to the number of a colour, above all object numbers
MOST_CLASSES = 64  # more values than this in a data set are object numbers
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")


def read_values(tree: Tree, path: str) -> np.ndarray:
    """Read a mask.

    Args:
        tree: the folder.
        path: the mask.

    Returns:
        (H, W) int64. Colours are numbers `COLOUR` + 0xRRGGBB; black and transparent pixels are 0.

    Raises:
        OSError: the file cannot be read, holds several pages, values that are no whole numbers, or values that JPEG
            changed.
    """
    try:
        with Image.open(tree.root / path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise OSError(f"it holds {image.n_frames} pages")
            if image.mode in ("1", "L", "P", "I", "F") or image.mode.startswith("I;16"):
                values = np.asarray(image)
            else:
                channels = np.asarray(image.convert("RGBA")).astype(np.int64)
                red, green, blue, alpha = np.moveaxis(channels, -1, 0)
                is_grey = bool(((red == green) & (green == blue)).all())
                values = red if is_grey else COLOUR + (red << 16) + (green << 8) + blue
                values = np.where((alpha > 0) & (values != COLOUR), values, 0)
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error
    whole = np.asarray(values).astype(np.int64)
    if np.issubdtype(values.dtype, np.floating) and not (whole == values).all():
        raise OSError("its values are not whole numbers")
    is_lossy = path.lower().endswith(LOSSY)
    if is_lossy and whole.any():
        bright, between = np.count_nonzero(whole >= 224), np.count_nonzero((whole > 32) & (whole < 224))
        if not bright or between > 0.25 * bright:
            raise OSError("JPEG changes the values of masks: export them as PNG")
    if is_lossy or _is_soft(whole):
        whole = np.where(whole > VOID // 2, VOID, 0)  # two values, blurred by compression or drawn with soft edges
    return whole


def _is_soft(values: np.ndarray) -> bool:
    """Whether a mask is 0 and 255 with values between them at the edges."""
    counts = np.bincount(values[(values >= 0) & (values <= VOID)], minlength=VOID + 1)
    between = counts[1:VOID].sum()
    return bool(values.max(initial=0) == VOID and between and np.count_nonzero(counts) > 8 and between < counts[VOID])


def meaning_of(tree: Tree, found: Mapping[str, Sequence[str]]) -> Meaning:
    """Decide what the values of the masks mean.

    Args:
        tree: the folder.
        found: {photograph: its masks}, relative to the folder.

    Returns:
        The meaning, as `masks` documents it.

    Raises:
        BadAnnotations: no mask can be read.
    """
    if any(len(masks) > 1 for masks in found.values()):
        return "files"
    sets = list(_value_sets(tree, [mask for masks in found.values() for mask in masks]))
    if not sets:
        raise BadAnnotations(f"{tree.root}: none of its masks can be read as an image: export them again as PNG")
    if all(
        OBJECT_FOLDERS.search(posixpath.basename(posixpath.dirname(mask))) for masks in found.values() for mask in masks
    ):
        return "objects"
    every = set().union(*sets)
    if all(len(values) <= 1 for values in sets) and len(every) <= 1:
        return "components"
    if len(every) > MOST_CLASSES or VOID < max(every) < COLOUR:
        return "objects"
    numbers = [values - {VOID} for values in sets]
    numbered = sum(not values or (1 in values and max(values) <= 1.5 * len(values)) for values in numbers)
    varied = len({frozenset(values) for values in sets}) > 1 or len(sets) < 5
    masks = [mask for listed in found.values() for mask in listed]
    return "objects" if numbered >= 0.9 * len(sets) and varied and _in_one_piece(tree, masks) else "classes"


def _in_one_piece(tree: Tree, masks: Sequence[str], tried: int = 50) -> bool:
    """Whether most values of the first masks are one connected component each, small specks aside."""
    whole = total = 0
    for mask in masks[:tried]:
        try:
            values = read_values(tree, mask)
        except OSError:
            continue
        for value in (int(v) for v in np.unique(values) if v not in (0, VOID)):
            _, _, statistics, _ = cv2.connectedComponentsWithStats((values == value).astype(np.uint8), connectivity=8)
            total += 1
            areas = statistics[1:, cv2.CC_STAT_AREA]
            whole += int(areas.max() >= 0.8 * areas.sum())
    return whole >= 0.7 * total


def _value_sets(tree: Tree, masks: Sequence[str]) -> Iterator[set[int]]:
    """The values but 0 of every mask that can be read."""
    for mask in masks:
        try:
            yield {int(v) for v in np.unique(read_values(tree, mask))} - {0}
        except OSError:
            continue
