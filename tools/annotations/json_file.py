"""Reading a COCO file: its parts, and its annotations one by one, so that large files need little memory.

Annotations that have the types of COCO's own files are decoded and checked by msgspec. Anything else becomes Python's
plain values, for `tools.annotations.entries` to repair or report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from resnet_backbone.errors import MissingFile
from resnet_backbone.file_kinds import HEAD_BYTES, JSON, TEXT, file_kind

from .findings import BadAnnotations, Findings

PARTS = ("images", "annotations", "categories")
BOM = b"\xef\xbb\xbf"


class Rle(msgspec.Struct, gc=False):
    """COCO's run lengths.

    Attributes:
        counts: lengths of the runs down the columns, zeros first; or the same as COCO's compressed text.
        size: height and width of the image; None if the file has none.
    """

    counts: list[int] | str
    size: tuple[int, int] | None = None


class Entry(msgspec.Struct, gc=False):
    """An annotation with usable types; its values may still be wrong.

    Attributes:
        image_id: id of its image.
        category_id: id of its category.
        bbox: x, y, width, height; None if there is none.
        segmentation: flat polygons, run lengths, or None.
        id: its id; None if there is none.
        area: in square pixels; None if there is none.
        iscrowd: 1 for a region with many objects.
        ignore: 1 for an object that is neither trained on nor scored, such as Pascal VOC's difficult ones.
    """

    image_id: int | str
    category_id: int | str
    bbox: tuple[float, float, float, float] | None = None
    segmentation: list[list[float]] | Rle | None = None
    id: int | str | None = None
    area: float | None = None
    iscrowd: int = 0
    ignore: int = 0


@dataclass(frozen=True)
class CocoFile:
    """The content of a COCO file.

    Attributes:
        images: entries of images, plain values.
        categories: entries of categories, plain values.
        annotations: entries of annotations: JSON text of each one, or plain values.
    """

    images: Sequence[Any]
    categories: Sequence[Any]
    annotations: Sequence[Any]

    def entries(self) -> Iterator[Entry | object]:
        """Decode the annotations one by one.

        Yields:
            An `Entry`, or the plain value of an annotation that does not have these types.
        """
        decode = msgspec.json.Decoder(Entry).decode
        for annotation in self.annotations:
            try:
                if isinstance(annotation, msgspec.Raw):
                    yield decode(annotation)
                else:
                    yield msgspec.convert(annotation, Entry)
            except (msgspec.ValidationError, OverflowError, RecursionError):
                yield msgspec.json.decode(annotation) if isinstance(annotation, msgspec.Raw) else annotation


def read_coco_file(path: Path, findings: Findings) -> CocoFile:
    """Read a COCO file.

    Args:
        path: the file.
        findings: where a byte order mark is reported.

    Returns:
        Its parts.

    Raises:
        MissingFile: there is no such file.
        BadAnnotations: the file is not JSON, or one of its parts is missing or no list.
    """
    if not path.is_file():
        raise MissingFile(f"no annotations at {path}: check data.*.annotations")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadAnnotations(f"{path} cannot be read ({error}): check the disk and the permissions") from error
    if data.startswith(BOM):
        data = data[len(BOM) :]
        findings.add("repaired", "byte order mark at the start of the file, skipped", unit="file")
    try:
        parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        content: dict[str, Any] = {}
        for name in PARTS:
            if name in parts:
                kind = list[msgspec.Raw] if name == "annotations" else Any
                content[name] = msgspec.json.decode(parts[name], type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Python's reader accepts NaN and Infinity, and says where the text goes wrong
        return from_content(_read_leniently(path, data), path)
    return from_content(content, path)


def from_content(content: object, source: Path | str) -> CocoFile:
    """Take the parts of COCO's content.

    Args:
        content: the content of a COCO file, plain values.
        source: the file, for messages.

    Returns:
        Its parts.

    Raises:
        BadAnnotations: a part is missing or no list.
    """
    if not isinstance(content, Mapping):
        kind = "a list, as result files do" if isinstance(content, list) else f"a {type(content).__name__}"
        raise BadAnnotations(
            f"{source} holds {kind}, not the lists {', '.join(PARTS)}: give a COCO instances file, or the folder of "
            "another format"
        )
    for name in PARTS:
        if name not in content:
            raise BadAnnotations(
                f"{source} has {_some(content)}, but no {name!r}: give a COCO instances file, or the folder of another "
                "format"
            )
        if isinstance(content[name], (str, bytes, Mapping)) or not isinstance(content[name], Sequence):
            raise BadAnnotations(
                f"{source}: {name!r} must be a list, got {type(content[name]).__name__}: write a list of entries, [] "
                "for none"
            )
    return CocoFile(content["images"], content["categories"], content["annotations"])


def _read_leniently(path: Path, data: bytes) -> object:
    """Read JSON with Python's reader; BadAnnotations says what the file is instead."""
    kind = file_kind(data[:HEAD_BYTES].strip() and data[:HEAD_BYTES])  # white space alone is empty too
    if kind not in (None, JSON, TEXT):
        raise BadAnnotations(f"{path} is {kind.what}, not COCO's JSON: {kind.fix or 'give a COCO instances file'}")
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadAnnotations(f"{path} is not UTF-8 ({error}): save it as UTF-8") from error
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise BadAnnotations(
            f"{path} is not complete JSON ({error}): copy it or download it again, or give a COCO instances file"
        ) from error


def _some(content: Mapping[Any, Any], limit: int = 8) -> str:
    names = [str(name) for name in list(content)[:limit]]
    return f"{names}{' ...' if len(content) > limit else ''}"
