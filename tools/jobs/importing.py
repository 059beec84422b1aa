"""Importing a data set: any format that is recognised, written as COCO files beside their images."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table

from resnet_backbone.errors import AlreadyExists, InvalidValue, did_you_mean
from tools.annotations.findings import BadAnnotations, Findings
from tools.annotations.formats import Folder, Split, read_folder
from tools.annotations.formats.classes import select_classes
from tools.annotations.formats.json_kind import read_json
from tools.annotations.formats.tree import scan
from tools.annotations.splits import split_content

# the keys without which an entry of a COCO file cannot be placed; the reader checks the others
KEYS = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}


@dataclass(frozen=True)
class ImportOptions:
    """How a data set is imported.

    Attributes:
        format: a key of `tools.annotations.formats.FORMATS`; None to recognise it.
        classes: such as ("person", "vehicle=car,truck"); empty for all.
        val_fraction: of the images, for data without a val split; 0 to make none.
        seed: of that split.
        link: whether images are symbolic links instead of copies.
        on_bad_annotation: "stop" at entries that cannot be used, or "drop" them.
        overwrite: whether an existing folder is replaced, once the new one is complete.
    """

    format: str | None = None
    classes: Sequence[str] = ()
    val_fraction: float = 0.2
    seed: int = 0
    link: bool = False
    on_bad_annotation: Literal["stop", "drop"] = "stop"
    overwrite: bool = False


def import_data(source: Path, out: Path, options: ImportOptions, console: Console) -> None:
    """Import a data set into a folder: `annotations/instances_SPLIT.json`, and the images in `SPLIT/`.

    Args:
        source: the folder of images and annotations, or one annotation file in it.
        out: the folder to write. It appears when it is complete; an interrupted import leaves nothing.
        options: how to import.
        console: where the format, the counts and all findings are printed.

    Raises:
        AlreadyExists: `out` exists and `overwrite` is not set.
        InvalidValue: `out` is inside the source or holds it, or a class is unknown.
        MissingFile: the source does not exist.
        BadAnnotations: no format is recognised, or entries cannot be used.
    """
    _check_out(source, out, options.overwrite)
    folder = read_folder(source, options.format)
    _say(console, f"{source}: {folder.format}", *folder.notes)
    splits = chosen_classes([_with_content(split) for split in folder.splits.values()], options.classes)
    if options.on_bad_annotation == "stop":
        _stop_at_refused(folder, splits)
    splits = [part for split in splits for part in _with_val(split, folder, options, console)]
    with complete_folder(out) as partial:
        for split in splits:
            _write(split, partial, options.link, console)
    _say(console, *(f"{split.name}: {line}" for split in splits for line in split.findings.lines()))
    console.print(count_table(splits))
    _say(console, f"{out} is written; train on it with data.folder={out}")


def _check_out(source: Path, out: Path, overwrite: bool) -> None:
    root = (source if source.is_dir() else source.parent).resolve()
    if out.resolve() == root or root in out.resolve().parents or out.resolve() in root.parents:
        raise InvalidValue(f"--out {out} and the source {source} hold each other: give a folder outside the source")
    if out.exists() and not overwrite:
        raise AlreadyExists(f"{out} exists: give another folder, or --overwrite to replace it")


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _with_content(split: Split) -> Split:
    """A split with COCO's content, and file names that exist below its folder of images."""
    if split.content is not None:
        return split
    content = read_json(split.annotations)
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in KEYS):
        raise BadAnnotations(f"{split.annotations} lacks a list of images, annotations or categories: export it again")
    content = {**content, **{part: _entries(content, part, split.findings) for part in KEYS}}
    tree = scan(split.images)
    files = set(tree.images)
    images = []
    for entry in content["images"]:
        name = str(entry.get("file_name") or entry.get("coco_url") or "")
        found = [name] if name in files else tree.find_image(name)
        if len(found) == 1:
            images.append({**entry, "file_name": found[0]})
            continue
        what = "several images have the name that is listed" if found else "image that is missing"
        fix = "add the image, or remove its entry and annotations"
        split.findings.add("refused", what, unit="image", entry=f"image {entry['id']}", came=name, fix=fix)
    ids = {entry["id"] for entry in images}
    kept = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    if lost := len(content["annotations"]) - len(kept):
        split.findings.add("dropped", "object of an image that cannot be used or is not listed", count=lost)
    return replace(split, content={**content, "images": images, "annotations": kept})


def _entries(content: Mapping[str, Any], part: str, findings: Findings) -> list[dict[str, Any]]:
    """The entries of a part of a COCO file that have their ids."""
    entries = []
    for number, entry in enumerate(content[part], 1):
        if isinstance(entry, dict) and all(isinstance(entry.get(key), (int, str)) for key in KEYS[part]):
            entries.append(entry)
            continue
        unit = {"images": "image", "annotations": "object", "categories": "category"}[part]
        what = f"entry of {part} without {' and '.join(KEYS[part])}"
        findings.add("refused", what, unit=unit, entry=f"entry {number}", came=entry, fix="add them, or remove it")
    return entries


def chosen_classes(splits: Sequence[Split], specs: Sequence[str]) -> list[Split]:
    """Select and merge classes in all splits.

    Args:
        splits: with content.
        specs: as for `parse_classes`; empty for all classes.

    Returns:
        The splits with the chosen classes.

    Raises:
        InvalidValue: as `parse_classes`.
    """
    if not specs:
        return list(splits)
    contents = [split.content for split in splits if split.content is not None]
    known = list(dict.fromkeys(str(c["name"]) for content in contents for c in content["categories"]))
    classes = parse_classes(specs, known)
    result = []
    for split, content in zip(splits, contents, strict=True):
        own = {str(category["name"]) for category in content["categories"]}
        there = {new: [old for old in olds if old in own] for new, olds in classes.items()}
        result.append(replace(split, content=select_classes(content, there, split.findings)))
    return result


def parse_classes(specs: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """Parse a selection of classes.

    Args:
        specs: each a name, or NEW=OLD,OLD to merge some. A name that exists is taken as it is, whatever it holds.
        known: the names of the classes in the data.

    Returns:
        {new name: old names}.

    Raises:
        InvalidValue: a name does not exist.
    """
    classes: dict[str, list[str]] = {}
    for spec in specs:
        new, equals, olds = spec.partition("=")
        names = [spec] if spec in known or not equals else [old.strip() for old in olds.split(",")]
        for name in names:
            if name not in known:
                raise InvalidValue(f"no class is called {name!r}: {did_you_mean(name, known)}")
        classes.setdefault(spec if spec in known else new.strip(), []).extend(names)
    return classes


def _stop_at_refused(folder: Folder, splits: Sequence[Split]) -> None:
    """Raise with the refused entries of all splits."""
    together = Findings(", ".join(dict.fromkeys(str(split.annotations) for split in splits)))
    for split in splits:
        together.extend(split.findings)
    try:
        together.raise_if_refused()
    except BadAnnotations as error:
        raise BadAnnotations(f"{error}\nCorrect them, or leave them out with --on-bad-annotation drop") from error


def _with_val(split: Split, folder: Folder, options: ImportOptions, console: Console) -> list[Split]:
    """The split, or train and val made from it if there is no val."""
    assert split.content is not None
    if split.name not in ("all", "train") or "val" in folder.splits or options.val_fraction == 0:
        return [replace(split, name="train" if split.name == "all" else split.name)]
    train, val = split_content(split.content, split.images, val_fraction=options.val_fraction, seed=options.seed)
    _say(console, f"no validation split is there, so one was made: {val['info']['split']}")
    return [
        replace(split, name="train", content=train),
        replace(split, name="val", content=val, findings=Findings(split.annotations)),
    ]


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when it is complete.

    Args:
        out: the folder. An existing one is replaced at the end.

    Yields:
        A new folder beside it. It is removed if the block raises, Ctrl-C included.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    partial.chmod(0o777 & ~_umask())
    try:
        yield partial
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.rename(old / out.name)
            try:
                partial.rename(out)
            except BaseException:
                (old / out.name).rename(out)
                old.rmdir()
                raise
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _write(split: Split, out: Path, link: bool, console: Console) -> None:
    """Write one split."""
    assert split.content is not None
    names = dict.fromkeys(str(entry["file_name"]) for entry in split.content["images"])
    for name in track(names, f"{split.name} images", console=console, transient=True, disable=not console.is_terminal):
        target = out / split.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to((split.images / name).resolve())
        else:
            shutil.copyfile(split.images / name, target)
    (out / split.name).mkdir(exist_ok=True)
    path = out / "annotations" / f"instances_{split.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(split.content), encoding="utf-8")


def count_table(splits: Sequence[Split]) -> Table:
    """Count images and objects.

    Args:
        splits: with content.

    Returns:
        A table with a column per split, and rows for images, images without objects, objects and every class.
    """
    table = Table("", *(split.name for split in splits))
    columns = [_counts(split.content or {}) for split in splits]
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(f"{column.get(name, 0):,}" for column in columns))
    return table


def _counts(content: Mapping[str, Any]) -> dict[str, int]:
    """Rows of the table, by their titles."""
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    objects = Counter(names.get(entry.get("category_id"), "?") for entry in content["annotations"])
    with_objects = {entry.get("image_id") for entry in content["annotations"]}
    rows = {
        "images": len(content["images"]),
        "images without objects": sum(entry["id"] not in with_objects for entry in content["images"]),
        "objects": len(content["annotations"]),
        "ignored (difficult)": sum(bool(entry.get("ignore")) for entry in content["annotations"]),
        "objects with an outline": sum(bool(entry.get("segmentation")) for entry in content["annotations"]),
    }
    return {**rows, **{f"  {name}": objects[name] for name in names.values()}}
