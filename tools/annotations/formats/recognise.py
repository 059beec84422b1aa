"""The format of a folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from resnet_backbone.errors import InvalidValue, did_you_mean

from ..findings import BadAnnotations
from . import coco, csv_boxes, cvat, dota, labelme, masks, via, voc, yolo
from .json_kind import json_kind
from .structures import Folder
from .tree import ARCHIVES, Tree, is_mask_folder, scan


class Format(NamedTuple):
    """A format.

    Attributes:
        title: for people.
        find: a function from the folder, and its JSON files by kind, to the files of this format.
        read: a function from the folder and those files to the data set.
        looked_for: what `find` looks for.
        is_secondary: read only where no other format is found: such files are often made from the others.
    """

    title: str
    find: Callable[[Tree, Mapping[str, list[str]]], list[str]]
    read: Callable[[Tree, Sequence[str]], Folder]
    looked_for: str
    is_secondary: bool = False


FORMATS: dict[str, Format] = {
    "coco": Format(
        "COCO", lambda tree, kinds: kinds["coco"], coco.read, "a JSON with images, annotations and categories"
    ),
    "voc": Format("Pascal VOC", lambda tree, kinds: voc.find(tree), voc.read, "XML files with <annotation>"),
    "yolo": Format(
        "YOLO", lambda tree, kinds: yolo.find(tree), yolo.read, "data.yaml, or label files *.txt named as the images"
    ),
    "via": Format("VIA", lambda tree, kinds: kinds["via"], via.read, "a JSON of the VGG Image Annotator"),
    "labelme": Format("labelme", lambda tree, kinds: kinds["labelme"], labelme.read, "JSON files with shapes"),
    "cvat": Format("CVAT", lambda tree, kinds: cvat.find(tree), cvat.read, "CVAT's annotations.xml, with images"),
    "dota": Format("DOTA", lambda tree, kinds: dota.find(tree), dota.read, "labelTxt/*.txt with quadrilaterals"),
    "csv": Format(
        "CSV", lambda tree, kinds: csv_boxes.find(tree), csv_boxes.read, "a CSV with a box per row", is_secondary=True
    ),
    "masks": Format(
        "mask images",
        lambda tree, kinds: masks.find(tree),
        masks.read,
        "masks named as the images, in a folder such as masks/",
        is_secondary=True,
    ),
}


def read_folder(path: Path, kind: str | None = None) -> Folder:
    """Recognise the format of a data set and convert it to COCO's.

    Args:
        path: the folder of images and annotations; or one annotation file (JSON, YAML, CSV) in it, to read that alone.
        kind: the format, a key of `FORMATS`; None to recognise it.

    Returns:
        The data set.

    Raises:
        MissingFile: the path does not exist.
        InvalidValue: the kind is unknown.
        BadAnnotations: no format or several are found, or nothing can be read.
    """
    if kind is not None and kind not in FORMATS:
        raise InvalidValue(f"kind={kind!r} is no format of annotations: {did_you_mean(kind, FORMATS)}")
    tree = scan(Path(path))
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in tree.with_suffix(".json"):
        kinds[json_kind(tree.root / name) or "other"].append(name)
    found = {key: files for key, entry in FORMATS.items() if (files := entry.find(tree, kinds))}
    if kind is not None:
        if kind not in found:
            raise BadAnnotations(f"{path}: no {FORMATS[kind].title} annotations: looked for {FORMATS[kind].looked_for}")
        chosen = kind
    else:
        chosen = _choose(tree, found)
    folder = FORMATS[chosen].read(tree, found[chosen])
    notes = [*folder.notes, *_unused_images(tree, folder, found.get("masks", []))]
    for key in (key for key in found if key != chosen):
        notes.append(
            f"annotations of another format are there and were not read: {FORMATS[key].title}, {found[key][0]} ..."
        )
    return Folder(folder.format, folder.splits, notes)


def _unused_images(tree: Tree, folder: Folder, masks: Sequence[str]) -> list[str]:
    """A sentence about the images that no split uses; none for COCO files, which are not read yet."""
    used: set[str] = set(masks)
    for split in folder.splits.values():
        if split.content is None:
            return []
        prefix = split.images.relative_to(tree.root).as_posix()
        used.update(f"{'' if prefix == '.' else f'{prefix}/'}{entry['file_name']}" for entry in split.content["images"])
    unused = [path for path in tree.images if path not in used and not is_mask_folder(path)]
    return [f"{len(unused):,} images are not used, such as {unused[0]}: they have no annotations"] if unused else []


def _choose(tree: Tree, found: Mapping[str, Sequence[str]]) -> str:
    """The format to read."""
    primary = [key for key in found if not FORMATS[key].is_secondary]
    if len(primary) == 1 or (not primary and len(found) == 1):
        return (primary or list(found))[0]
    if not found:
        kinds = "\n".join(f"  {entry.title}: {entry.looked_for}" for entry in FORMATS.values())
        raise BadAnnotations(
            f"{tree.root}: no annotations were recognised among {len(tree.files):,} files, {len(tree.images):,} of "
            f"which are images. {_advice(tree)} Looked for:\n{kinds}"
        )
    examples = "; ".join(f"{key}: {', '.join(found[key][:2])}" for key in primary or found)
    raise BadAnnotations(
        f"{tree.root} holds annotations of several formats ({examples}): import the right one with "
        "`python tools/import_data.py SRC --out DIR --format NAME` and give DIR, or move the others out of the folder"
    )


def _advice(tree: Tree) -> str:
    archives = [path for path in tree.files if path.lower().endswith(ARCHIVES)]
    if archives:
        return f"Extract {archives[0]} first."
    return "Give the folder that holds both images and annotations."
