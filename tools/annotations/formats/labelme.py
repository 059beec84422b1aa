"""labelme's JSON files, one per image.

Polygons, rectangles, circles and masks become objects; the parts that share a label and a `group_id` become one. Shapes
without area (points, lines) are dropped with a count.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..findings import BadAnnotations, Findings
from .json_kind import read_json
from .outlines import box_of, ellipse, encoded
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import Tree, by_folder, stem
from .voc import image_of

NO_AREA = ("point", "points", "line", "linestrip")
NOT_OBJECTS = ("__ignore__", "_background_")  # labels that labelme's own converters leave out


class BadShape(ValueError):
    """A shape whose points cannot be used; the message says what is wrong."""


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert labelme files.

    Args:
        tree: the folder.
        files: the labelme files.

    Returns:
        The data set, with the splits that the folders' names give.
    """
    notes = [f"{len(files):,} JSON files of labelme"]
    drafts = []
    for name, paths in by_folder(files, notes).items():
        draft = Draft.of(name, tree.root)
        taken: dict[str, str] = {}
        for path in paths:
            _read_file(tree, draft, path, taken)
        drafts.append(draft)
    return Folder("labelme", finish(tree, drafts), notes)


def _read_file(tree: Tree, draft: Draft, path: str, taken: dict[str, str]) -> None:
    """Read one file; `taken` holds the images that have one, {image: JSON file}."""
    findings = draft.findings
    try:
        content = read_json(tree.root / path)
    except BadAnnotations as error:
        fix = "export it again, or remove it"
        findings.add("refused", "JSON file that is not complete", unit="file", entry=path, came=str(error), fix=fix)
        return
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        fix = "export it again, or remove it"
        findings.add("refused", "JSON file without a list of shapes", unit="file", entry=path, came=shapes, fix=fix)
        return
    name = str(content.get("imagePath") or "")
    embedded = isinstance(content.get("imageData"), str) and not (tree.find_stem(stem(path)) or tree.find_image(name))
    if embedded:
        fix = "write the image file: `labelme_export_json FILE.json` does"
        findings.add("refused", "image that is only embedded in the JSON", unit="image", entry=path, came=name, fix=fix)
        draft.lose_objects(len(shapes), path)
        return
    image_path = image_of(tree, draft, path, name)
    if image_path is not None and image_path in taken:
        entry = f"{path} and {taken[image_path]}"
        findings.add(
            "refused", "several annotation files for one image", unit="image", entry=entry, fix="keep one of them"
        )
        image_path = None
    size = content.get("imageWidth"), content.get("imageHeight")
    stated = (int(size[0]), int(size[1])) if all(isinstance(v, int) and v > 0 for v in size) else None
    image = None if image_path is None else sized_image(tree, draft, image_path, stated)
    if image is None:
        draft.lose_objects(len(shapes), path)
        return
    taken[image.path] = path
    _read_shapes(findings, image, shapes, path)


def _read_shapes(findings: Findings, image: DraftImage, shapes: Sequence[Any], path: str) -> None:
    """Add the objects of a file."""
    groups: dict[Any, list[tuple[str, Mapping[str, Any]]]] = {}
    for number, shape in enumerate(shapes, 1):
        entry = f"{path}, shape {number}"
        label = shape.get("label") if isinstance(shape, dict) else None
        kind = shape.get("shape_type") or "polygon" if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label.strip():
            findings.add("refused", "shape without a label", entry=entry, came=shape, fix="give it a label in labelme")
        elif kind in NO_AREA:
            findings.add("dropped", f"{kind}, which has no area", entry=entry)
        elif label in NOT_OBJECTS:
            findings.add("dropped", f"shape with the label {label}", entry=entry)
        else:
            group = shape.get("group_id")
            key = (label.strip(), group) if isinstance(group, (int, str)) else (label.strip(), None, number)
            groups.setdefault(key, []).append((entry, shape))
    for key, parts in groups.items():
        _add_group(findings, image, key[0], parts)


def _add_group(
    findings: Findings, image: DraftImage, label: str, parts: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """Add one object made of one or more shapes."""
    polygons, boxes, masks = [], [], []
    for entry, shape in parts:
        try:
            polygon, box, mask = outline(shape, image)
        except BadShape as error:
            came = shape.get("points")
            findings.add("refused", str(error), entry=entry, came=came, fix="draw it again in labelme")
            continue
        if min(box[2:]) <= 0 or (polygon is not None and len(polygon) < 6):
            findings.add("dropped", "shape of no area", entry=entry, came=shape.get("points"))
            continue
        boxes.append(box)
        polygons += [polygon] if polygon is not None else []
        masks += [mask] if mask is not None else []
    if not boxes:
        return
    if len(boxes) > 1:
        what = "shape joined to another one with its label and group_id: together one object"
        findings.add("note", what, unit="part", entry=parts[1][0], count=len(boxes) - 1)
    box = box_of([[x, y, x + w, y + h] for x, y, w, h in boxes])
    if masks and len(masks) == len(boxes):
        rle, box, area = encoded(np.logical_or.reduce(masks))
        image.add(label, box, segmentation=rle, area=area)
    elif polygons and len(polygons) == len(boxes):
        image.add(label, box, segmentation=polygons)
    else:
        if len(boxes) > 1:
            findings.add("warning", "group of different kinds of shapes: its box alone is used", entry=parts[0][0])
        image.add(label, box)


def outline(shape: Mapping[str, Any], image: DraftImage) -> tuple[list[float] | None, list[float], np.ndarray | None]:
    """The outline of a shape.

    Args:
        shape: labelme's entry.
        image: the image.

    Returns:
        The polygon (None for rectangles and masks), the box x, y, width, height, and the mask ((H, W) bool, None for
        other shapes), pixels.

    Raises:
        BadShape: the kind is unknown, or its points are missing or no finite numbers.
    """
    kind = shape.get("shape_type") or "polygon"
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadShape(f"{kind} whose points are missing or no pairs of numbers") from error
    if not points or not all(math.isfinite(v) for point in points for v in point):
        raise BadShape(f"{kind} without points, or with a number that is not finite")
    flat = [v for point in points for v in point]
    if kind in ("polygon", "oriented_rectangle"):
        return flat, box_of([flat]), None
    if kind == "rectangle" and len(points) in (2, 4):
        return None, box_of([flat]), None
    if kind == "circle" and len(points) == 2:
        radius = math.dist(points[0], points[1])
        polygon = ellipse(*points[0], radius, radius)
        return polygon, box_of([polygon]), None
    if kind == "mask" and len(points) == 2:
        mask = _mask(shape, image, points)
        return None, encoded(mask)[1], mask
    raise BadShape(f"{kind} of {len(points)} points, which is unknown")


def _mask(shape: Mapping[str, Any], image: DraftImage, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """The mask of a shape of kind "mask": a PNG laid at the first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
            part = np.asarray(picture.convert("L")) > 0 if picture.mode != "1" else np.asarray(picture)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise BadShape("mask whose PNG cannot be read") from error
    x, y = int(min(p[0] for p in points)), int(min(p[1] for p in points))
    if x < 0 or y < 0 or y + part.shape[0] > image.height or x + part.shape[1] > image.width:
        raise BadShape("mask that leaves its image")
    if not part.any():
        raise BadShape("mask without a pixel")
    mask = np.zeros((image.height, image.width), bool)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask
