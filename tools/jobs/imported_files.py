"""Writing an imported data set: COCO files beside their images, in a folder that appears when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tools.annotations.json_file import PARTS
from tools.annotations.table import AnnotationTable

# fields of an annotation that the reader checks and repairs; the others are written as they came
CHECKED = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}


@dataclass(frozen=True)
class ImportedSplit:
    """A split that was read.

    Attributes:
        name: of the split.
        table: its objects.
        folder: the folder that the names of its images are relative to.
        original: the content before it was checked, with fields that the table does not have.
        classes: the classes that were chosen; empty for all.
    """

    name: str
    table: AnnotationTable
    folder: Path
    original: Mapping[str, Any]
    classes: tuple[str, ...]


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


def write_split(split: ImportedSplit, out: Path, link: bool, console: Console) -> dict[str, Any]:
    """Write the images and the annotation file of a split.

    Args:
        split: what to write.
        out: the folder to write into.
        link: whether images are symbolic links instead of copies.
        console: where the progress is shown.

    Returns:
        COCO's content, as written.
    """
    table = split.table
    names = _target_names(table.paths, split.folder)
    files = dict(zip(names, table.paths))
    (out / split.name).mkdir()
    title = f"{split.name} images"
    for name, path in track(files.items(), title, console=console, transient=True, disable=not console.is_terminal):
        target = out / split.name / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to(path.resolve())
        else:
            shutil.copyfile(path, target)
    content = _content(split, names)
    path = out / "annotations" / f"instances_{split.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return content


def _target_names(paths: Sequence[Path], folder: Path) -> list[str]:
    """Names of the copies of images, relative to the new folder: as in the old folder, and one for every file."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        if path in names:
            continue
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        plain, number = PurePosixPath(path.name if ".." in name.split("/") else name), 1
        name = str(plain)
        while name in taken:
            number += 1
            name = str(plain.with_name(f"{plain.stem}-{number}{plain.suffix}"))
        names[path] = name
        taken.add(name)
    return [names[path] for path in paths]


def _content(split: ImportedSplit, names: Sequence[str]) -> dict[str, Any]:
    """COCO's content of a split: what was checked, and the other fields as they came."""
    table, original = split.table, split.original
    coco = table.to_coco()
    others = {key: value for key, value in original.items() if key not in PARTS}
    images, categories = _by_id(original.get("images")), _by_id(original.get("categories"))
    content: dict[str, Any] = {
        **others,
        "images": [
            {**images.get(entry["id"], {}), **entry, "file_name": name} for entry, name in zip(coco["images"], names)
        ],
        "categories": [{**categories.get(entry["id"], {}), **entry} for entry in coco["categories"]],
    }
    new_ids = {name: number for number, name in enumerate(split.classes, 1)}
    if new_ids:
        content["categories"] = [{"id": number, "name": name} for name, number in new_ids.items()]
    rows = table.rows.tolist()
    ids = [table.object_ids[row] for row in rows]
    keeps_ids = len(set(ids)) == len(ids) and all(isinstance(i, int) and i > 0 for i in ids)
    if not keeps_ids and any(i is not None for i in ids):
        what = "annotation ids that repeat, or are no positive numbers: written as 1, 2, ..."
        table.findings.add("note", what, unit="file")
    listed = original.get("annotations") or []
    annotations = []
    for row, object_id, entry in zip(rows, ids, coco["annotations"], strict=True):
        old = listed[table.numbers[row]]
        more = {k: v for k, v in old.items() if k not in CHECKED} if isinstance(old, Mapping) else {}
        new = {"id": object_id} if keeps_ids else {}
        if new_ids:
            new["category_id"] = new_ids[table.class_names[table.labels[row]]]
        annotations.append({**more, **entry, **new})
    return {**content, "annotations": annotations}


def _by_id(entries: Any) -> dict[Any, Mapping[str, Any]]:
    """The entries of images or categories that have ids."""
    return {e["id"]: e for e in entries or [] if isinstance(e, Mapping) and isinstance(e.get("id"), (int, str, float))}


def count_table(contents: Mapping[str, Mapping[str, Any]]) -> Table:
    """Count images and objects.

    Args:
        contents: COCO's content of every split, by name.

    Returns:
        A table with a column per split, and rows for images, images without objects, objects and every class.
    """
    table = Table("", *contents)
    columns = [_counts(content) for content in contents.values()]
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
