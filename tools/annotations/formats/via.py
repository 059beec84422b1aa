"""JSON of the VGG Image Annotator, version 2 (projects and exported annotations) and 1 (exported annotations).

Rectangles, polygons, circles and ellipses become objects. The class is the value of one region attribute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..findings import BadAnnotations, Findings
from .json_kind import read_json
from .outlines import box_of, ellipse
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import Tree, split_of

ONE_CLASS = "object"
USUAL = ("class", "label", "name", "category", "type", "object")
NO_AREA = ("point", "polyline", "line")


class BadShape(ValueError):
    """A shape whose numbers cannot be used; the message says what is wrong."""


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert VIA files.

    Args:
        tree: the folder.
        files: the VIA files in it; the split comes from their names and folders.

    Returns:
        The data set.

    Raises:
        BadAnnotations: several files fit one split, or several region attributes may be the class.
    """
    by_split: dict[str, list[str]] = {}
    for path in files:
        by_split.setdefault(("all" if tree.only else split_of(path, with_stem=True)) or "all", []).append(path)
    if any(len(paths) > 1 for paths in by_split.values()) or ("all" in by_split and len(by_split) > 1):
        raise BadAnnotations(
            f"{tree.root} holds several VIA files ({', '.join(files[:5])}), and their names do not tell which to use: "
            "remove those that are not to be used, give the path of one file instead of the folder, or name one file "
            "of each split with train, val and test"
        )
    contents = {name: read_json(tree.root / paths[0]) for name, paths in by_split.items()}
    attribute, note = class_attribute(tree, contents.values())
    notes = [note]
    drafts = []
    for name in ("train", "val", "test", "all"):
        if name in by_split:
            path = by_split[name][0]
            draft = Draft.of(name, tree.root / path)
            taken: set[str] = set()
            for entry in entries(contents[name]):
                _read_entry(tree, draft, path, entry, attribute, taken)
            notes.append(f"{name}: {path}, {len(draft.images):,} images")
            drafts.append(draft)
    return Folder("VIA", finish(tree, drafts), notes)


def entries(content: Any) -> list[dict[str, Any]]:
    """The images of a VIA file.

    Args:
        content: a project or an export.

    Returns:
        Entries with "filename" and "regions".
    """
    images = content.get("_via_img_metadata", content) if isinstance(content, dict) else content
    images = list(images.values()) if isinstance(images, dict) else images
    return (
        []
        if not isinstance(images, list)
        else [entry for entry in images if isinstance(entry, dict) and "filename" in entry and "regions" in entry]
    )


def regions(entry: Mapping[str, Any]) -> list[Any]:
    """The regions of an image: a list in version 2, a dict in version 1."""
    value = entry["regions"] or []
    return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else [value]


def _dict(value: Any) -> dict[str, Any]:
    """The value if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def class_attribute(tree: Tree, contents: Iterable[Any]) -> tuple[str | None, str]:
    """Find the region attribute that holds the class.

    Args:
        tree: the folder, for the message.
        contents: the VIA files.

    Returns:
        Its name, or None if no region has an attribute; and a sentence that says so.

    Raises:
        BadAnnotations: several attributes may be the class.
    """
    defined: dict[str, str] = {}
    used: Counter[str] = Counter()
    for content in contents:
        attributes = _dict(_dict(_dict(content).get("_via_attributes")).get("region"))
        defined |= {
            name: str(entry.get("type", "text")) for name, entry in attributes.items() if isinstance(entry, dict)
        }
        for entry in entries(content):
            for region in regions(entry):
                values = _dict(_dict(region).get("region_attributes"))
                used.update(name for name, value in values.items() if value not in ("", None, {}))
    candidates = [name for name in used if defined.get(name) != "checkbox"] or list(used)
    if not candidates:
        return None, f'no region has attributes: all objects are of one class, "{ONE_CLASS}"'
    if len(candidates) > 1:
        usual = [name for name in candidates if name.lower() in USUAL]
        if len(usual) != 1:
            raise BadAnnotations(
                f"{tree.root}: VIA's regions have the attributes {', '.join(sorted(candidates))}, and any may be the "
                'class: rename the right one to "class" in the JSON'
            )
        return usual[0], f'the region attribute "{usual[0]}" is the class (others: {", ".join(sorted(candidates))})'
    return candidates[0], f'the region attribute "{candidates[0]}" is the class'


def _read_entry(
    tree: Tree, draft: Draft, path: str, entry: Mapping[str, Any], attribute: str | None, taken: set[str]
) -> None:
    """Add an image and its regions; `taken` holds the images that have an entry."""
    name = str(entry["filename"])
    found = tree.find_image(name, near=path)
    image = None
    if len(found) == 1 and found[0] not in taken:
        taken.add(found[0])
        image = sized_image(tree, draft, found[0])
    elif len(found) == 1:
        draft.findings.add("refused", "image that is listed twice", unit="image", entry=name, fix="keep one entry")
    else:
        what = "several images have the name that is listed" if found else "image that is missing"
        fix = "keep one of them" if found else "add the image, or remove its entry"
        draft.findings.add("refused", what, unit="image", entry=f"{path}: {name}", fix=fix)
    if image is None:
        draft.lose_objects(len(regions(entry)), name)
        return
    for number, region in enumerate(regions(entry), 1):
        add_region(draft.findings, image, region, attribute, f"{name}, region {number}")


def add_region(findings: Findings, image: DraftImage, region: Any, attribute: str | None, entry: str) -> None:
    """Add the object of one region.

    Args:
        findings: of the split.
        image: the image.
        region: with "shape_attributes" and "region_attributes".
        attribute: the region attribute that is the class; None for `ONE_CLASS`.
        entry: where the region is.
    """
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict) or "name" not in shape:
        findings.add("refused", "region without a shape", entry=entry, came=region, fix="remove it, or draw it again")
        return
    kind = shape["name"]
    if kind in NO_AREA:
        findings.add("dropped", f"{kind}, which has no area", entry=entry)
        return
    label = ONE_CLASS
    if attribute is not None:
        attributes = region.get("region_attributes")
        value = attributes.get(attribute) if isinstance(attributes, dict) else None
        chosen = [name for name, on in value.items() if on] if isinstance(value, dict) else [value]
        if len(chosen) != 1 or chosen[0] is None or not str(chosen[0]).strip():
            fix = f'set its attribute "{attribute}" to one class'
            findings.add("refused", "region without a class, or with several", entry=entry, came=value, fix=fix)
            return
        label = str(chosen[0]).strip()
    try:
        polygon, box = outline(shape)
    except BadShape as error:
        findings.add("refused", str(error), entry=entry, came=shape, fix="draw it again")
        return
    if min(box[2:]) <= 0 or (polygon is not None and len(polygon) < 6):
        findings.add("dropped", "object of no area", entry=entry, came=shape)
    else:
        image.add(label, box, segmentation=None if polygon is None else [polygon])


def outline(shape: Mapping[str, Any]) -> tuple[list[float] | None, list[float]]:
    """The outline and box of a shape.

    Args:
        shape: VIA's "shape_attributes".

    Returns:
        The polygon (None for a rectangle) and the box x, y, width, height, pixels.

    Raises:
        BadShape: the kind is unknown, or its numbers are missing, not finite, or of unequal count.
    """

    def numbers(*names: str) -> list[float]:
        try:
            values = [float(shape[name]) for name in names]
        except (KeyError, TypeError, ValueError) as error:
            raise BadShape(f"{shape['name']} without the numbers {', '.join(names)}") from error
        if not all(map(math.isfinite, values)):
            raise BadShape(f"{shape['name']} with a number that is not finite")
        return values

    if shape["name"] == "rect":
        x, y, w, h = numbers("x", "y", "width", "height")
        return None, [min(x, x + w), min(y, y + h), abs(w), abs(h)]
    if shape["name"] == "circle":
        cx, cy, r = numbers("cx", "cy", "r")
        polygon = ellipse(cx, cy, r, r)
    elif shape["name"] == "ellipse":
        cx, cy, rx, ry = numbers("cx", "cy", "rx", "ry")
        polygon = ellipse(cx, cy, rx, ry, numbers("theta")[0] if "theta" in shape else 0.0)
    elif shape["name"] == "polygon":
        try:
            points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
            polygon = [float(v) for point in points for v in point]
        except (KeyError, TypeError, ValueError) as error:
            raise BadShape("polygon whose lists of x and y are missing, unequal or no numbers") from error
        if not polygon or not all(map(math.isfinite, polygon)):
            raise BadShape("polygon without points, or with a number that is not finite")
    else:
        raise BadShape(f"shape of the unknown kind {shape['name']!r}")
    return polygon, box_of([polygon])
