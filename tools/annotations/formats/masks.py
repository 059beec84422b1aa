"""Mask images beside photographs: object numbers, one file per object, or classes.

What the values of a mask mean is decided for the whole data set, and said:

- several files for an image (`ID/images/*.png` with `ID/masks/*.png`, or `masks/STEM/*.png`): one object per file;
- masks of two values: every connected component (8 neighbours) of what is not 0 is an object;
- values 1..n in most files, values above 255, or more than 64 values in all: every value is an object (instance ids);
- other values or colours: every value is a class, and each of its connected components an object.

Objects of masks have one class, "object", except in the last case.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from ..findings import BadAnnotations
from .outlines import encoded
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import Tree, by_folder, stem

ONE_CLASS = "object"
FOLDERS = re.compile(r"mask|segmentation|label|annot|ground_?truth|instance|^gt$|_gt$|^seg$", re.IGNORECASE)
SUFFIX = re.compile(r"[_\-.](cp_)?(masks?|labels?|gt|seg|instances?|instance_?ids?)$", re.IGNORECASE)
PHOTOGRAPH_SUFFIXES = ("", "_img", "_image", "-img")
VOID = 255
COLOUR = 1 << 40  # added to the number of a colour, above all object numbers
MOST_CLASSES = 64  # more values than this in a data set are object numbers
SMALL_PX = 4  # components of fewer pixels are probably noise
LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp")

Meaning = Literal["objects", "files", "components", "classes"]
SENTENCES: dict[Meaning, str] = {
    "objects": "every value but 0 in a mask is one object",
    "files": "there is one mask file per object: what is not 0 is the object",
    "components": "masks have two values: every connected part of what is not 0 is one object, even if it is "
    "several that touch",
    "classes": "the values of the masks are classes: every connected part of a value is one object, even if it is "
    "several that touch",
}


def find(tree: Tree) -> list[str]:
    """The mask images that belong to a photograph.

    Args:
        tree: the folder.

    Returns:
        Paths relative to the folder.
    """
    if tree.only is not None:
        return []
    return sorted(mask for masks in pairs(tree).values() for mask in masks)


def pairs(tree: Tree) -> dict[str, list[str]]:
    """Match photographs and masks.

    Args:
        tree: the folder.

    Returns:
        {photograph: its masks}, relative to the folder.
    """
    candidates = [path for path in tree.images if _may_be_mask(path)]
    masks = set(candidates)
    by_stem: dict[str, list[str]] = defaultdict(list)
    by_folder_: dict[str, list[str]] = defaultdict(list)
    for path in tree.images:
        if path not in masks:
            by_stem[stem(path).lower()].append(path)
            by_folder_[posixpath.dirname(path)].append(path)
    found: dict[str, list[str]] = defaultdict(list)
    for mask in candidates:
        if photograph := _photograph_of(mask, by_stem, by_folder_):
            found[photograph].append(mask)
    return found


def _may_be_mask(path: str) -> bool:
    parts = posixpath.dirname(path).split("/")
    return any(FOLDERS.search(part) for part in parts[-2:]) or bool(SUFFIX.search(stem(path)))


def _photograph_of(mask: str, by_stem: Mapping[str, list[str]], by_folder: Mapping[str, list[str]]) -> str | None:
    """The photograph of a mask; None if there is none or several."""
    name = stem(mask)
    folder = posixpath.dirname(mask)
    above = posixpath.dirname(folder)
    stems = [base + end for base in dict.fromkeys((name, SUFFIX.sub("", name))) for end in PHOTOGRAPH_SUFFIXES]
    for candidate in (*stems, posixpath.basename(folder)):
        found = by_stem.get(candidate.lower(), [])
        if len(found) > 1:
            shared = [len(set(path.split("/")) & set(mask.split("/"))) for path in found]
            found = [path for path, count in zip(found, shared) if count == max(shared)]
        if len(found) == 1:
            return found[0]
    for sibling in ("images", "image"):
        found = by_folder.get(posixpath.join(above, sibling), [])
        if len(found) == 1 and above:
            return found[0]
    return None


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert mask images.

    Args:
        tree: the folder.
        files: the masks.

    Returns:
        The data set, with the splits that the folders' names give.

    Raises:
        BadAnnotations: no mask can be read.
    """
    found = pairs(tree)
    notes = [f"{len(files):,} masks of {len(found):,} images"]
    meaning = _meaning(tree, found)
    notes.append(SENTENCES[meaning])
    drafts = []
    for name, images in by_folder(sorted(found), notes).items():
        draft = Draft.of(name, tree.root)
        for path in images:
            image = sized_image(tree, draft, path)
            for mask in found[path] if image is not None else ():
                assert image is not None
                _read_mask(tree, draft, image, mask, meaning)
        drafts.append(draft)
    return Folder("mask images", finish(tree, drafts), notes)


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


def _meaning(tree: Tree, found: Mapping[str, Sequence[str]]) -> Meaning:
    """What the values of the masks mean."""
    if any(len(masks) > 1 for masks in found.values()):
        return "files"
    sets = list(_value_sets(tree, [mask for masks in found.values() for mask in masks]))
    if not sets:
        raise BadAnnotations(f"{tree.root}: none of its masks can be read as an image: export them again as PNG")
    every = set().union(*sets)
    if all(len(values) <= 1 for values in sets) and len(every) <= 1:
        return "components"
    numbered = sum(values - {VOID} == set(range(1, len(values - {VOID}) + 1)) for values in sets)
    varied = len({frozenset(values) for values in sets}) > 1 or len(sets) < 5
    if len(every) > MOST_CLASSES or (numbered >= 0.9 * len(sets) and varied) or VOID < max(every) < COLOUR:
        return "objects"
    return "classes"


def _value_sets(tree: Tree, masks: Sequence[str]) -> Iterator[set[int]]:
    """The values but 0 of every mask that can be read."""
    for mask in masks:
        try:
            yield {int(v) for v in np.unique(read_values(tree, mask))} - {0}
        except OSError:
            continue


def _read_mask(tree: Tree, draft: Draft, image: DraftImage, mask: str, meaning: Meaning) -> None:
    """Add the objects of one mask."""
    try:
        values = read_values(tree, mask)
    except OSError as error:
        fix = "replace it, or remove it together with its image"
        draft.findings.add("refused", "mask that cannot be read", unit="file", entry=mask, came=str(error), fix=fix)
        return
    if values.shape != (image.height, image.width):
        came = f"{values.shape[1]}x{values.shape[0]}, the image {image.width}x{image.height}"
        fix = "export masks of the image's size"
        draft.findings.add(
            "refused", "mask of another size than its image", unit="file", entry=mask, came=came, fix=fix
        )
        return
    if meaning == "files":
        values = (values != 0).astype(np.int64)
        if not values.any():
            draft.findings.add("dropped", "mask file of an object without a pixel", entry=mask)
    for value in (int(v) for v in np.unique(values) if v != 0):
        part = values == value
        if meaning in ("objects", "files"):
            if meaning == "objects" and value == VOID and _is_border(values):
                draft.findings.add("note", "value 255 read as the border between objects", unit="file", entry=mask)
            else:
                _add(draft, image, ONE_CLASS, part, mask)
            continue
        label = (
            ONE_CLASS
            if meaning == "components"
            else f"class {value}"
            if value < COLOUR
            else f"colour #{value - COLOUR:06x}"
        )
        count, numbers = cv2.connectedComponents(part.astype(np.uint8), connectivity=8)
        for number in range(1, count):
            _add(draft, image, label, numbers == number, mask)


def _is_border(values: np.ndarray) -> bool:
    """Whether the objects are numbered 1..n without 255, as in Pascal VOC's SegmentationObject."""
    numbers = [int(v) for v in np.unique(values) if v not in (0, VOID)]
    return bool(numbers) and numbers == list(range(1, len(numbers) + 1)) and len(numbers) < VOID - 1


def _add(draft: Draft, image: DraftImage, label: str, mask: np.ndarray, entry: str) -> None:
    rle, box, area = encoded(mask)
    if area < SMALL_PX:
        what = f"object of fewer than {SMALL_PX} pixels, perhaps noise in the mask"
        draft.findings.add("warning", what, entry=entry, came=f"{area:g} pixels")
    image.add(label, box, segmentation=rle, area=area)
