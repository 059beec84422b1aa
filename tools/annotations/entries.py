"""Annotations and images whose values have other types than COCO's own files: what can be read is repaired.

A number may be written as text, a flag as a boolean or null, a polygon as one flat list or as pairs. What cannot be
read without a guess is malformed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .findings import Findings
from .json_file import Entry, Rle

FLAGS = {None: 0, False: 0, True: 1, "": 0, "0": 0, "1": 1, "false": 0, "true": 1}


class Malformed(Exception):
    """An entry that cannot be read. The arguments are: what is wrong, what was there, how to fix it."""


def repaired_entry(value: object, name: str, findings: Findings) -> Entry:
    """Read an annotation of unusual types.

    Args:
        value: the annotation, plain values.
        name: what to call it, such as "annotation 17".
        findings: where repairs are reported.

    Returns:
        The annotation with usual types.

    Raises:
        Malformed: a value cannot be read.
    """
    if not isinstance(value, Mapping):
        raise Malformed("annotation that is no mapping", value, "write a mapping with image_id, category_id and bbox")
    segmentation = _segmentation(value.get("segmentation"), name, findings)
    return Entry(
        image_id=read_id(value.get("image_id"), "image_id"),
        category_id=read_id(value.get("category_id"), "category_id"),
        bbox=_box(value.get("bbox"), name, findings),
        segmentation=segmentation,
        id=_optional_id(value.get("id")),
        area=_area(value.get("area"), name, findings),
        iscrowd=_flag(value.get("iscrowd"), "iscrowd", name, findings),
        ignore=_flag(value.get("ignore"), "ignore", name, findings),
    )


def read_id(value: object, key: str) -> int | str:
    """Read an id: a whole number or a text.

    Args:
        value: the id.
        key: its key, for the message.

    Returns:
        The id; 3.0 becomes 3.

    Raises:
        Malformed: it is missing or something else.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise Malformed(f"{key} that is missing, or neither a whole number nor a text", value, f"write the {key}")
    return value


def read_side(value: object) -> int | None:
    """Read the height or width of an image.

    Args:
        value: a whole number, also as text or as 48.0.

    Returns:
        The side, pixels; None for anything else, and for numbers below 1.
    """
    number = _number(value)
    if number is None or not number.is_integer() or not 1 <= number < 2**31:
        return None
    return int(number)


def _number(value: object) -> float | None:
    """A number, also written as text; None for anything else. NaN and infinities are returned."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _optional_id(value: object) -> int | str | None:
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def _flag(value: Any, key: str, name: str, findings: Findings) -> int:
    if isinstance(value, str):
        value = value.strip().lower()
    try:
        flag = FLAGS[value]  # 0.0 and 1.0 are equal to False and True
    except (KeyError, TypeError):
        raise Malformed(f"{key} that is neither 0 nor 1", value, f"write 0 or 1 as {key}") from None
    if value is not None and type(value) is not int:
        findings.add("repaired", f"{key} written as text or boolean, read as 0 or 1", entry=name, came=value)
    return flag


def _area(value: object, name: str, findings: Findings) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None:
        findings.add("repaired", "area that is no number, computed anew", entry=name, came=value)
    elif isinstance(value, str):
        findings.add("repaired", "area written as text, read as a number", entry=name, came=value)
    return number


def _box(value: object, name: str, findings: Findings) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    fix = "write four finite numbers, [x, y, width, height], or null to take the box of the outline"
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence) or len(value) != 4:
        raise Malformed("bbox that is no list of four numbers", value, fix)
    numbers = [_number(v) for v in value]
    if any(n is None for n in numbers):
        raise Malformed("bbox with a value that is no number", value, fix)
    if not all(math.isfinite(n) for n in numbers if n is not None):
        raise Malformed("bbox with a value that is not finite", value, fix)
    if any(isinstance(v, str) for v in value):
        findings.add("repaired", "bbox with numbers written as text, read as numbers", entry=name, came=value)
    x, y, w, h = (float(n) for n in numbers if n is not None)
    return x, y, w, h


def _segmentation(value: object, name: str, findings: Findings) -> list[list[float]] | Rle | None:
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, Mapping):
        return _rle(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Malformed("segmentation that is neither polygons nor run lengths", value, "write polygons, RLE or null")
    return _polygons(value, name, findings)


def _rle(value: Mapping[Any, Any]) -> Rle:
    fix = 'write {"size": [height, width], "counts": run lengths}'
    counts, size = value.get("counts"), value.get("size")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not isinstance(counts, str):
        if not isinstance(counts, Sequence):
            raise Malformed("RLE without counts", value, fix)
        numbers = [_number(c) for c in counts]
        if any(n is None or not n.is_integer() for n in numbers):
            raise Malformed("RLE with a run that is no whole number", counts, fix)
        counts = [int(n) for n in numbers if n is not None]
    if size is None:
        return Rle(counts)
    sides = [_number(s) for s in size] if isinstance(size, Sequence) and not isinstance(size, str) else []
    if len(sides) != 2 or any(s is None or not s.is_integer() for s in sides):
        raise Malformed("RLE whose size is not two whole numbers", size, fix)
    height, width = (int(s) for s in sides if s is not None)
    return Rle(counts, (height, width))


def _polygons(value: Sequence[Any], name: str, findings: Findings) -> list[list[float]]:
    """Polygons, also written as one flat list, or as pairs of x and y."""
    fix = "write a list of polygons, each a flat list of finite numbers x1, y1, x2, y2, ..."
    if not any(_is_list(part) for part in value):
        findings.add("repaired", "polygon that is not in a list of polygons, read as one part", entry=name)
        parts: list[Any] = [value]
    elif not all(_is_list(part) for part in value):
        raise Malformed("polygons mixed with numbers", value, fix)
    else:
        parts = [_flat(part, name, findings) for part in value]
    polygons = [[_number(v) for v in part] for part in parts]
    if any(v is None for polygon in polygons for v in polygon):
        raise Malformed("polygon with a value that is no number", value, fix)
    if any(isinstance(v, str) for part in parts for v in part):
        findings.add("repaired", "polygon with numbers written as text, read as numbers", entry=name)
    return [[float(v) for v in polygon if v is not None] for polygon in polygons]


def _flat(part: Sequence[Any], name: str, findings: Findings) -> Sequence[Any]:
    """A polygon of pairs as a flat list; any other one as it is."""
    if part and all(_is_list(pair) and len(pair) == 2 for pair in part):
        findings.add("repaired", "polygon written as pairs of x and y, read as a flat list", entry=name)
        return [coordinate for pair in part for coordinate in pair]
    return part


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
