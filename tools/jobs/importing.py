"""Importing a data set: any format that is recognised, written as COCO files beside their images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

from resnet_backbone.errors import AlreadyExists, InvalidValue, did_you_mean
from tools.annotations.box_formats import BoxFormat
from tools.annotations.findings import BadAnnotations, read_all
from tools.annotations.formats import Split, read_folder
from tools.annotations.formats.json_kind import read_json
from tools.annotations.reader import ReadOptions, read_annotations
from tools.annotations.splits import split_table

from .imported_files import ImportedSplit, complete_folder, count_table, write_split

BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)
# the reader names settings of a configuration; these are options of the command
SETTING = re.compile(r"data\.(on_bad_annotation|on_bad_image|box_format|crowds|outside_images|classes)(: (\w+))?")


@dataclass(frozen=True)
class ImportOptions:
    """How a data set is imported.

    Attributes:
        format: a key of `tools.annotations.formats.FORMATS`; None to recognise it.
        classes: such as ("person", "vehicle=car,truck"); empty for all.
        val_fraction: of the images, for data without a val split; 0 to make none.
        seed: of that split.
        link: whether images are symbolic links instead of copies.
        on_bad_annotation: "stop" at annotations that cannot be used, or "drop" them.
        on_bad_image: "stop" at images that are missing, unreadable or of another size, or "skip" them.
        box_format: as in `tools.annotations.reader.ReadOptions`.
        crowds: as in `tools.annotations.reader.ReadOptions`.
        outside_images: whether image files outside the folder may be read.
        overwrite: whether an existing folder is replaced, once the new one is complete.
    """

    format: str | None = None
    classes: Sequence[str] = ()
    val_fraction: float = 0.2
    seed: int = 0
    link: bool = False
    on_bad_annotation: Literal["stop", "drop"] = "stop"
    on_bad_image: Literal["stop", "skip"] = "stop"
    box_format: BoxFormat = "auto"
    crowds: Literal["auto", "crowds", "objects"] = "auto"
    outside_images: bool = False
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
    read = _read(list(folder.splits.values()), options)
    splits = [part for split in read for part in _with_val(split, read, options, console)]
    with complete_folder(out) as unfinished:
        contents = {split.name: write_split(split, unfinished, options.link, console) for split in splits}
    said = (f"{split.name}: {line}" for split in splits for line in split.table.findings.lines())
    _say(console, *map(as_options, said))
    console.print(count_table(contents))
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


def as_options(text: str) -> str:
    """Name the options of the command where a message names the settings of a configuration.

    Args:
        text: such as "set data.on_bad_image: skip".

    Returns:
        Such as "set --on-bad-image skip".
    """

    def option(match: re.Match[str]) -> str:
        name = f"--{match[1].replace('_', '-')}"
        return f"{name} {match[3]}" if match[3] and match[1] != "outside_images" else name

    return SETTING.sub(option, text.replace(" (data.*.images)", ""))


def _read(splits: Sequence[Split], options: ImportOptions) -> list[ImportedSplit]:
    """Read and check all splits, with one error for all of them."""
    classes: dict[str, list[str]] | None = None
    originals: dict[str, Mapping[str, Any]] = {}
    if options.classes:
        originals = {split.name: _original(split) for split in splits}
        known = dict.fromkeys(name for content in originals.values() for name in _class_names(content))
        classes = parse_classes(options.classes, list(known))
    readers = {s.name: partial(_read_split, s, options, classes, originals.get(s.name)) for s in splits}
    try:
        read = read_all(readers)
    except BadAnnotations as error:
        raise BadAnnotations(as_options(str(error))) from error
    return list(read.values())


def _read_split(
    split: Split,
    options: ImportOptions,
    classes: Mapping[str, Sequence[str]] | None,
    original: Mapping[str, Any] | None,
) -> ImportedSplit:
    """Read one split; `original` is its content if it is known already, as it is if classes were chosen."""
    source = split.annotations if split.content is None else split.content
    chosen = None
    if classes is not None and original is not None:  # a split need not have every class
        own = set(_class_names(original))
        chosen = {new: tuple(old for old in olds if old in own) for new, olds in classes.items()}
        chosen = {new: olds for new, olds in chosen.items() if olds}
    reading = ReadOptions(
        on_bad_annotation=options.on_bad_annotation,
        on_bad_image=options.on_bad_image,
        box_format=options.box_format,
        crowds=options.crowds,
        classes=chosen,
        outside_images=options.outside_images,
        allow_empty=True,
    )
    table = read_annotations(source, split.images, reading, findings=split.findings)
    original = _original(split) if original is None else original
    return ImportedSplit(split.name, table, split.images, original, tuple(classes or ()))


def _original(split: Split) -> Mapping[str, Any]:
    """The content of a split before it is checked; {} if it has none."""
    content = read_json(split.annotations) if split.content is None else split.content
    return content if isinstance(content, Mapping) else {}


def _class_names(content: Mapping[str, Any]) -> list[str]:
    entries = content.get("categories")
    return [str(e["name"]) for e in entries if isinstance(e, Mapping) and "name" in e] if entries else []


def parse_classes(specs: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """Parse a selection of classes.

    Args:
        specs: each a name, or NEW=OLD,OLD to merge some. A name that exists is taken as it is, whatever it holds.
        known: the names of the classes in the data.

    Returns:
        {new name: old names}.

    Raises:
        InvalidValue: a name does not exist, or is given twice.
    """
    classes: dict[str, list[str]] = {}
    taken: set[str] = set()
    for spec in specs:
        new, equals, olds = spec.partition("=")
        names = [spec] if spec in known or not equals else [old.strip() for old in olds.split(",")]
        for name in names:
            if name not in known:
                raise InvalidValue(f"no class is called {name!r}: {did_you_mean(name, known)}")
            if name in taken:
                raise InvalidValue(f"the class {name!r} is given twice: give it once")
            taken.add(name)
        classes.setdefault(spec if spec in known else new.strip(), []).extend(names)
    return classes


def _with_val(
    split: ImportedSplit, splits: Sequence[ImportedSplit], options: ImportOptions, console: Console
) -> list[ImportedSplit]:
    """The split, or train and val made from it if there is no val."""
    has_val = any(other.name == "val" for other in splits)
    if split.name not in ("all", "train") or has_val or options.val_fraction == 0:
        return [replace(split, name="train" if split.name == "all" else split.name)]
    train, val, said = split_table(split.table, val_fraction=options.val_fraction, seed=options.seed)
    _say(console, f"no validation split is there, so one was made: {said}")
    info = split.original.get("info")
    original = {**split.original, "info": {**(info if isinstance(info, Mapping) else {}), "split": said}}
    return [
        replace(split, name="train", table=train, original=original),
        replace(split, name="val", table=val, original=original),
    ]
