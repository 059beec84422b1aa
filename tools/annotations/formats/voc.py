"""Pascal VOC's XML files, as the challenge, LabelImg, CVAT and Roboflow write them.

Corners count pixels from 1 and are inclusive: x = xmin - 1, width = xmax - xmin + 1, as detectron2 reads them. Objects
marked `difficult` get `ignore`. Masks of `SegmentationObject` become the outlines of the objects in their order.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from .outlines import box_of, encoded
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import Tree, by_folder, stem
from .xml_file import line, read_xml, text

LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}
VOID = 255  # the border around objects in SegmentationObject
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SAME_OBJECT_IOU = 0.5  # least IoU of a mask's box with the object's


def find(tree: Tree) -> list[str]:
    """The XML files with a VOC annotation.

    Args:
        tree: the folder.

    Returns:
        Paths relative to the folder.
    """
    return [path for path in tree.with_suffix(".xml") if re.search(rb"<annotation[\s>]", _head(tree, path))]


def _head(tree: Tree, path: str) -> bytes:
    with (tree.root / path).open("rb") as file:
        return file.read(2048).replace(b"\0", b"")  # UTF-16 too


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert VOC annotations.

    Args:
        tree: the folder.
        files: the XML files.

    Returns:
        The data set, with the splits of ImageSets/Main or of the folders' names.
    """
    notes = [f"{len(files):,} XML files; corners count pixels from 1, inclusive, as VOC defines them"]
    drafts = []
    for name, (paths, without_file) in _splits(tree, files, notes).items():
        draft = Draft.of(name, tree.root)
        for entry in without_file:
            fix = "an image without objects needs an XML file without <object>"
            draft.findings.add("dropped", "listed image without an XML file", unit="image", entry=entry, fix=fix)
        taken: dict[str, str] = {}
        for path in paths:
            _read_file(tree, draft, path, taken)
        drafts.append(draft)
    return Folder("Pascal VOC", finish(tree, drafts), notes)


def _splits(tree: Tree, files: Sequence[str], notes: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """By split: the XML files, and the listed images without one. From the lists in ImageSets, or from folders."""
    lists = [path for path in tree.files if re.search(r"(^|/)ImageSets/(Main/)?[^/]+\.txt$", path, re.IGNORECASE)]
    lists = [path for path in lists if stem(path).lower() in LISTS]
    with_main = [path for path in lists if posixpath.basename(posixpath.dirname(path)).lower() == "main"]
    lists = with_main or lists
    names = {stem(path).lower() for path in lists}
    if "trainval" in names and "train" in names:
        lists = [path for path in lists if stem(path).lower() != "trainval"]
    if not lists:
        return {name: (paths, []) for name, paths in by_folder(files, notes).items()}
    splits: dict[str, tuple[list[str], list[str]]] = {}
    listed: set[str] = set()
    for path in lists:
        root = re.split(r"(?i)(?:^|/)ImageSets/", path)[0]
        xml_of = {stem(xml): xml for xml in files if not root or xml.startswith(f"{root}/")}
        entries = (tree.root / path).read_text("utf-8-sig").splitlines()
        ids = [PurePosixPath(entry.split()[0].replace("\\", "/")).name for entry in entries if entry.strip()]
        found = {i: xml_of.get(i) or xml_of.get(stem(i)) for i in ids}
        paths, without_file = splits.setdefault(LISTS[stem(path).lower()], ([], []))
        paths += [xml for xml in found.values() if xml is not None]
        without_file += [f"{path}: {i}" for i, xml in found.items() if xml is None]
        listed.update(paths)
        notes.append(f"{path} lists {len(ids):,} images")
    if unlisted := len(set(files) - listed):
        notes.append(f"{unlisted:,} XML files are in none of the lists and are not used")
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def _read_file(tree: Tree, draft: Draft, path: str, taken: dict[str, str]) -> None:
    """Read one XML file into a split; `taken` holds the images that have one, {image: XML file}."""
    findings = draft.findings
    try:
        root = read_xml(tree.root / path)
    except ValueError as error:
        fix = "correct the file, or remove it"
        findings.add("refused", "XML file that cannot be parsed", unit="file", entry=path, came=str(error), fix=fix)
        return
    objects = root.findall("object")
    image_path = image_of(tree, draft, path, text(root, "filename"))
    if image_path is not None and image_path in taken:
        entry = f"{path} and {taken[image_path]}"
        findings.add(
            "refused", "several annotation files for one image", unit="image", entry=entry, fix="keep one of them"
        )
        image_path = None
    image = None if image_path is None else sized_image(tree, draft, image_path, _size(draft, path, root))
    if image is None:
        draft.lose_objects(len(objects), path)
        return
    taken[image.path] = path
    masks = _masks(tree, draft, path, image)
    for number, element in enumerate(objects, 1):
        _read_object(draft, image, element, f"{path}:{line(element)}", masks.get(number))


def image_of(tree: Tree, draft: Draft, path: str, name: str) -> str | None:
    """The image of an annotation file: the one with its stem, or the one that it names.

    Args:
        tree: the folder.
        draft: the split, for the findings.
        path: the annotation file, relative to the folder.
        name: the file name that it gives; may be empty.

    Returns:
        The image, relative to the folder; None if it is missing or ambiguous, which is a refused finding.
    """
    by_stem = tree.find_stem(stem(path), near=path)
    found = by_stem if len(by_stem) == 1 else tree.find_image(name, near=path) or by_stem
    if not found:
        fix = "add the image, or remove the annotation file"
        draft.findings.add("refused", "image that is missing", unit="image", entry=path, came=name, fix=fix)
        return None
    if len(found) > 1:
        fix = "keep one of them, or put each annotation file into the folder of its image"
        draft.findings.add(
            "refused", "several images fit one annotation file", unit="image", entry=path, came=found, fix=fix
        )
        return None
    if name and re.split(r"[\\/]", name)[-1] not in (posixpath.basename(found[0]), stem(found[0])):
        draft.findings.add(
            "repaired", "image found by the name of its annotation file, which states another name", unit="image",
            entry=path, came=name,
        )  # fmt: skip
    return found[0]


def _size(draft: Draft, path: str, root: Element) -> tuple[int, int] | None:
    """The stated size; None if there is none, so that the header is read."""
    stated = text(root.find("size"), "width"), text(root.find("size"), "height")
    try:
        width, height = (int(float(v)) for v in stated)
    except (ValueError, OverflowError):
        width = height = 0
    if width > 0 and height > 0:
        return width, height
    draft.findings.add(
        "repaired", "size read from the image, since the XML file states none", unit="image", entry=path, came=stated
    )
    return None


def _read_object(draft: Draft, image: DraftImage, element: Element, entry: str, mask: np.ndarray | None) -> None:
    """Read one <object>."""
    findings, label = draft.findings, text(element, "name")
    if not label:
        findings.add("refused", "object without a class", entry=entry, fix="add its <name>")
        return
    corners = box_corners(element)
    if corners is None:
        came = {name: text(element.find("bndbox"), name) for name in CORNERS}
        fix = "give <bndbox> four numbers: xmin, ymin, xmax, ymax"
        findings.add("refused", "box that is not four numbers", entry=entry, came=came, fix=fix)
        return
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        findings.add("dropped", "box of no area, or with its corners swapped", entry=entry, came=list(corners))
        return
    if min(x1, y1) < 1:
        fix = "if another program wrote corners that begin at 0, all boxes are one pixel off"
        findings.add(
            "warning", "box that begins before pixel 1, where VOC begins", entry=entry, came=list(corners), fix=fix
        )
    box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
    ignore = text(element, "difficult").lower() in ("1", "true", "yes")
    if ignore:
        findings.add("note", "object marked difficult: left out of training, ignored in scoring")
    segmentation: Any = None
    area = None
    if mask is not None:
        rle, mask_box, mask_area = encoded(mask)
        if _iou(box, mask_box) >= SAME_OBJECT_IOU:
            segmentation, area = rle, mask_area
        else:
            findings.add("warning", "mask that contradicts the box: the box alone is used", entry=entry, came=mask_box)
    elif polygon := _polygon(element):
        segmentation = [polygon]
    image.add(label, box, segmentation=segmentation, area=area, ignore=ignore)


def box_corners(element: Element) -> tuple[float, float, float, float] | None:
    """The corners of an object's box.

    Args:
        element: the <object>; <robndbox> (a rotated box) gives the box that encloses it.

    Returns:
        xmin, ymin, xmax, ymax, in VOC's counting; None if they are not four finite numbers.
    """
    try:
        rotated = element.find("robndbox")
        if rotated is not None and element.find("bndbox") is None:
            cx, cy, w, h, angle = (float(text(rotated, name)) for name in ("cx", "cy", "w", "h", "angle"))
            half_w = (abs(w * math.cos(angle)) + abs(h * math.sin(angle))) / 2
            half_h = (abs(w * math.sin(angle)) + abs(h * math.cos(angle))) / 2
            corners = cx - half_w, cy - half_h, cx + half_w, cy + half_h
        else:
            x1, y1, x2, y2 = (float(text(element.find("bndbox"), name)) for name in CORNERS)
            corners = x1, y1, x2, y2
    except ValueError:
        return None
    return corners if all(math.isfinite(v) for v in corners) else None


def _polygon(element: Element) -> list[float] | None:
    """The outline <polygon><x1/><y1/><x2/>..., which supervision and Roboflow write, counted from 1 like the box."""
    outline = element.find("polygon")
    flat: list[float] = []
    while outline is not None and (x := text(outline, f"x{len(flat) // 2 + 1}")):
        y = text(outline, f"y{len(flat) // 2 + 1}")
        try:
            flat += [float(x) - 1, float(y) - 1]
        except ValueError:
            return None
    return flat if len(flat) >= 6 and all(math.isfinite(v) for v in flat) and min(box_of([flat])[2:]) > 0 else None


def _masks(tree: Tree, draft: Draft, path: str, image: DraftImage) -> dict[int, np.ndarray]:
    """The masks of SegmentationObject beside Annotations, {number of the object from 1: (H, W) bool}."""
    folder = posixpath.join(posixpath.dirname(posixpath.dirname(path)), "SegmentationObject")
    file = tree.root / folder / f"{stem(path)}.png"
    if not file.is_file():
        return {}
    with Image.open(file) as picture:
        values = np.asarray(picture) if picture.mode in ("P", "L") else np.zeros((0, 0))
    if values.shape != (image.height, image.width):
        what = (
            "file in SegmentationObject that is not greyscale or palette of the image's size: the boxes alone are used"
        )
        draft.findings.add("warning", what, unit="image", entry=path)
        return {}
    return {int(v): values == v for v in np.unique(values) if v not in (0, VOID)}


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes x, y, width, height."""
    width = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    inner = width * height
    return inner / (a[2] * a[3] + b[2] * b[3] - inner)
