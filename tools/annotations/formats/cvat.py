"""CVAT's own XML ("CVAT for images 1.1"): all images in one file.

Boxes, polygons, ellipses and masks become objects; polylines, points, skeletons and cuboids are dropped with a count.
Coordinates are continuous, from 0 at the edge of the first pixel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import numpy as np

from ..findings import BadAnnotations
from .outlines import box_of, ellipse, encoded
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import SPLIT_NAMES, Tree, split_of
from .xml_file import line, read_xml

SHAPES = ("box", "polygon", "ellipse", "mask")
NO_AREA = ("polyline", "points", "cuboid", "skeleton")


class BadShape(ValueError):
    """A shape whose numbers cannot be used; the message says what is wrong."""


def find(tree: Tree) -> list[str]:
    """CVAT's XML files.

    Args:
        tree: the folder.

    Returns:
        Paths relative to the folder.
    """
    found = []
    for path in tree.with_suffix(".xml"):
        with (tree.root / path).open("rb") as file:
            if re.search(rb"<annotations[\s>]", file.read(2048)):
                found.append(path)
    return found


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert CVAT's XML.

    Args:
        tree: the folder.
        files: the XML files; the split comes from their images' `subset`, or from their names and folders.

    Returns:
        The data set.

    Raises:
        BadAnnotations: a file cannot be parsed, or holds a video.
    """
    notes: list[str] = []
    drafts: dict[str, Draft] = {}
    taken: set[str] = set()
    labels: list[str] = []
    for path in files:
        try:
            root = read_xml(tree.root / path)
        except ValueError as error:
            raise BadAnnotations(f"{tree.root / path} cannot be parsed ({error}): export it again") from error
        if root.find("track") is not None:
            raise BadAnnotations(
                f'{tree.root / path} holds the tracks of a video: export "CVAT for images 1.1" or COCO, with images'
            )
        labels += [(name.text or "").strip() for name in root.iterfind("meta//label/name")]
        images = root.findall("image")
        notes.append(f"{path} lists {len(images):,} images")
        for element in images:
            split = SPLIT_NAMES.get(element.get("subset", "").lower()) or split_of(path, with_stem=True) or "all"
            draft = drafts.setdefault(split, Draft.of(split, tree.root / path))
            _read_image(tree, draft, path, element, taken)
    if "all" in drafts and len(drafts) > 1:
        drafts["all"].name = "train"
        if "train" in drafts:
            drafts["train"].images += drafts["all"].images
            drafts["train"].findings.extend(drafts.pop("all").findings)
        notes.append("images without a subset are used for train")
    used = {entry["label"] for draft in drafts.values() for image in draft.images for entry in image.objects}
    classes = [*dict.fromkeys(label for label in labels if label), *sorted(used - set(labels))]
    return Folder("CVAT", finish(tree, drafts.values(), classes), notes)


def _read_image(tree: Tree, draft: Draft, path: str, element: Element, taken: set[str]) -> None:
    """Add an image and its shapes; `taken` holds the images that were listed already."""
    name = element.get("name", "")
    shapes = [child for child in element if child.tag in (*SHAPES, *NO_AREA)]
    found = tree.find_image(name, near=path)
    image = None
    entry = f"{path}:{line(element)}"
    if len(found) == 1 and found[0] not in taken:
        taken.add(found[0])
        image = sized_image(tree, draft, found[0])
    else:
        what = "image that is listed twice" if len(found) == 1 else "image that is missing"
        what = "several images have the name that is listed" if len(found) > 1 else what
        fix = "keep one of them" if found else "add the image, or remove its entry"
        draft.findings.add("refused", what, unit="image", entry=entry, came=name, fix=fix)
    if image is None:
        draft.lose_objects(len(shapes), entry)
        return
    for shape in shapes:
        _add_shape(draft, image, shape, f"{path}:{line(shape)}")


def _add_shape(draft: Draft, image: DraftImage, shape: Element, entry: str) -> None:
    """Add the object of one shape."""
    label = shape.get("label", "").strip()
    if shape.tag in NO_AREA:
        draft.findings.add("dropped", f"{shape.tag}, which is no box or area", entry=entry)
        return
    if not label:
        draft.findings.add("refused", "shape without a label", entry=entry, fix="give it a label in CVAT")
        return
    try:
        if shape.tag == "mask":
            rle, box, area = encoded(_mask(shape, image))
            image.add(label, box, segmentation=rle, area=area)
            return
        polygon, box = outline(shape)
    except BadShape as error:
        fix = "draw it again in CVAT, and export again"
        draft.findings.add("refused", str(error), entry=entry, came=dict(shape.attrib), fix=fix)
        return
    if min(box[2:]) <= 0 or (polygon is not None and len(polygon) < 6):
        draft.findings.add("dropped", "object of no area", entry=entry)
    else:
        image.add(label, box, segmentation=None if polygon is None else [polygon])


def _numbers(shape: Element, *names: str) -> list[float]:
    try:
        values = [float(shape.attrib[name]) for name in names]
    except (KeyError, ValueError) as error:
        raise BadShape(f"{shape.tag} without the numbers {', '.join(names)}") from error
    if not all(map(math.isfinite, values)):
        raise BadShape(f"{shape.tag} with a number that is not finite")
    return values


def outline(shape: Element) -> tuple[list[float] | None, list[float]]:
    """The outline and box of a <box>, <polygon> or <ellipse>.

    Args:
        shape: the element. A rotation in degrees, clockwise about the centre, is applied.

    Returns:
        The polygon (None for a box that is not rotated) and the box x, y, width, height, pixels.

    Raises:
        BadShape: numbers are missing or not finite.
    """
    angle = math.radians(_numbers(shape, "rotation")[0]) if "rotation" in shape.attrib else 0.0
    if shape.tag == "ellipse":
        cx, cy, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
        polygon = ellipse(cx, cy, rx, ry, angle)
        return polygon, box_of([polygon])
    if shape.tag == "box":
        x1, y1, x2, y2 = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
        if angle == 0.0:
            return None, [x1, y1, x2 - x1, y2 - y1]
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        polygon = []
        for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)):
            polygon.append(cx + (x - cx) * math.cos(angle) - (y - cy) * math.sin(angle))
            polygon.append(cy + (x - cx) * math.sin(angle) + (y - cy) * math.cos(angle))
        return polygon, box_of([polygon])
    try:
        polygon = [float(v) for point in shape.get("points", "").split(";") for v in point.split(",", 1)]
    except ValueError as error:
        raise BadShape("polygon whose points are no pairs of numbers") from error
    if len(polygon) % 2 or not all(map(math.isfinite, polygon)):
        raise BadShape("polygon whose points are no pairs of finite numbers")
    return polygon, box_of([polygon])


def _mask(shape: Element, image: DraftImage) -> np.ndarray:
    """(H, W) bool from lengths of runs, row by row, of what is outside and inside in turn."""
    left, top, width, height = (int(v) for v in _numbers(shape, "left", "top", "width", "height"))
    try:
        runs = [int(run) for run in shape.get("rle", "").split(",")]
    except ValueError as error:
        raise BadShape("mask whose runs are no whole numbers") from error
    if min(left, top, *runs) < 0 or left + width > image.width or top + height > image.height:
        raise BadShape("mask that leaves its image")
    if sum(runs) != width * height or not sum(runs[1::2]):
        raise BadShape("mask whose runs do not fill its box, or without a pixel")
    part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask = np.zeros((image.height, image.width), bool)
    mask[top : top + height, left : left + width] = part
    return mask
