"""Mask images beside photographs: object numbers, one file per object, or classes.

What the values of a mask mean is decided for the whole data set, and said:

- several files for an image (`ID/images/*.png` with `ID/masks/*.png`, or `masks/STEM/*.png`): one object per file;
- masks of two values: every connected component (8 neighbours) of what is not 0 is an object;
- a folder named after objects or instances, as SegmentationObject, values above 255, more than 64 values in all, or
  values 1, 2, ... in nine of ten files, which differ from file to file and are mostly in one piece: every value is an
  object (instance ids);
- other values or colours: every value is a class, and each of its connected components an object.

Objects of masks have one class, "object", except in the last case, and where SegmentationClass lies beside
SegmentationObject. Names of classes come from `class_names.txt`, where labelme writes it.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from ..findings import BadAnnotations
from .mask_values import COLOUR, OBJECT_FOLDERS, VOID, Meaning, meaning_of, read_values
from .outlines import encoded
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import Tree, by_folder, stem

ONE_CLASS = "object"
FOLDERS = re.compile(r"mask|segmentation|label|annot|ground_?truth|instance|^gt$|_gt$|^seg$", re.IGNORECASE)
CLASS_FOLDERS = re.compile(r"class|semantic", re.IGNORECASE)
PICTURES = re.compile(r"visuali[sz]|[_-]viz$|overlay|colou?r", re.IGNORECASE)  # for people, not for programs
SUFFIX = re.compile(r"[_\-.](cp_)?(masks?|labels?|gt|seg|instances?|instance_?ids?)$", re.IGNORECASE)
PHOTOGRAPH_SUFFIXES = ("", "_img", "_image", "-img")
SMALL_PX = 4  # components of fewer pixels are probably noise

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
        if path not in masks and not PICTURES.search(posixpath.basename(posixpath.dirname(path))):
            by_stem[stem(path).lower()].append(path)
            by_folder_[posixpath.dirname(path)].append(path)
    found: dict[str, list[str]] = defaultdict(list)
    for mask in candidates:
        if photograph := _photograph_of(mask, by_stem, by_folder_):
            found[photograph].append(mask)
    return found


def _may_be_mask(path: str) -> bool:
    parts = posixpath.dirname(path).split("/")
    if PICTURES.search(parts[-1]) or PICTURES.search(stem(path)):
        return False
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
    found, class_masks = _one_folder(tree, pairs(tree))
    notes = [f"{sum(map(len, found.values())):,} masks of {len(found):,} images"]
    meaning = meaning_of(tree, found)
    notes.append(SENTENCES[meaning])
    names = _class_names(tree, notes)
    if class_masks:
        notes.append(f"the classes of the objects come from {posixpath.dirname(next(iter(class_masks.values())))}")
    drafts = []
    for name, images in by_folder(sorted(found), notes).items():
        draft = Draft.of(name, tree.root)
        for path in images:
            image = sized_image(tree, draft, path)
            for mask in found[path] if image is not None else ():
                assert image is not None
                _read_mask(tree, draft, image, mask, meaning, names, class_masks.get(path))
        drafts.append(draft)
    return Folder("mask images", finish(tree, drafts), notes)


def _one_folder(tree: Tree, found: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The masks to read, from one folder per image, and the mask of classes of an image, if there is one beside it.

    Raises:
        BadAnnotations: the masks of an image lie in several folders, and none has the name of a folder of objects.
    """
    chosen, classes = {}, {}
    for photograph, masks in found.items():
        folders = sorted({posixpath.dirname(mask) for mask in masks})
        if len(folders) > 1:
            objects = [folder for folder in folders if OBJECT_FOLDERS.search(posixpath.basename(folder))]
            if len(objects) != 1:
                raise BadAnnotations(
                    f"{tree.root}: the masks of {photograph} lie in several folders ({', '.join(folders)}): keep one "
                    "of them, or call the one of object numbers SegmentationObject"
                )
            others = [mask for mask in masks if CLASS_FOLDERS.search(posixpath.basename(posixpath.dirname(mask)))]
            if len(others) == 1:
                classes[photograph] = others[0]
            masks = [mask for mask in masks if posixpath.dirname(mask) == objects[0]]
        chosen[photograph] = masks
    return chosen, classes


def _class_names(tree: Tree, notes: list[str]) -> list[str]:
    """Names of the values of class masks, from labelme's list."""
    lists = [path for path in tree.files if posixpath.basename(path) == "class_names.txt"]
    if len(lists) != 1:
        return []
    notes.append(f"{lists[0]} names the classes")
    return [line.strip() for line in (tree.root / lists[0]).read_bytes().decode("utf-8-sig", "replace").splitlines()]


def _label(value: int, names: Sequence[str]) -> str:
    """The class of a value or colour of a mask."""
    if value >= COLOUR:
        return f"colour #{value - COLOUR:06x}"
    return names[value] if value < len(names) and names[value] else f"class {value}"


def _read_mask(
    tree: Tree,
    draft: Draft,
    image: DraftImage,
    mask: str,
    meaning: Meaning,
    names: Sequence[str],
    class_mask: str | None,
) -> None:
    """Add the objects of one mask; the mask of classes, if there is one, gives their classes."""
    classes = None
    try:
        values = read_values(tree, mask)
        if class_mask is not None:
            classes = read_values(tree, class_mask)
    except OSError as error:
        fix = "replace it, or remove it together with its image"
        draft.findings.add("refused", "mask that cannot be read", unit="file", entry=mask, came=str(error), fix=fix)
        return
    if any(part.shape != (image.height, image.width) for part in (values, classes) if part is not None):
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
    is_voc = posixpath.basename(posixpath.dirname(mask)).lower() in ("segmentationclass", "segmentationobject")
    for value in (int(v) for v in np.unique(values) if v != 0):
        part = values == value
        if value == VOID and (is_voc or (meaning == "objects" and _is_border(values))):
            draft.findings.add("note", "value 255 read as the border between objects", unit="file", entry=mask)
        elif meaning in ("objects", "files"):
            _add(draft, image, ONE_CLASS if classes is None else _label(_most(classes[part]), names), part, mask)
        else:
            label = ONE_CLASS if meaning == "components" else _label(value, names)
            count, numbers = cv2.connectedComponents(part.astype(np.uint8), connectivity=8)
            for number in range(1, count):
                _add(draft, image, label, numbers == number, mask)


def _most(values: np.ndarray) -> int:
    """The most frequent value that is no border."""
    found, counts = np.unique(values, return_counts=True)
    counts[(found == VOID) | (found == 0)] = 0
    return int(found[counts.argmax()])


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
