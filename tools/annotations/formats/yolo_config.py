"""What configures a YOLO data set: `data.yaml`, darknet's `obj.data`, or a list of names beside the labels."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..findings import BadAnnotations
from .tree import Tree, by_folder, components, is_mask_folder

SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NAME_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt", "labels.names")
USUAL = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class Config:
    """A YOLO data set, before its labels are read.

    Attributes:
        path: the file that was read, relative to the folder; empty without one.
        classes: names by class number; None if there are none.
        splits: the images of every split, relative to the folder.
        keypoints: whether lines hold key points after the box.
        notes: what was found, in sentences.
    """

    path: str
    classes: dict[int, str] | None
    splits: dict[str, list[str]]
    keypoints: bool
    notes: list[str]


def find_configs(tree: Tree) -> list[str]:
    """The configuration files of YOLO data sets.

    Args:
        tree: the folder.

    Returns:
        YAML files with names, and a split or a number of classes; otherwise darknet's `*.data` files.
    """
    files = [path for path in tree.with_suffix(".yaml", ".yml") if _is_config(tree, path)]
    return files or [path for path in tree.with_suffix(".data") if re.search(r"(?m)^\s*names\s*=", _text(tree, path))]


def read_config(tree: Tree, files: Sequence[str]) -> Config:
    """Read the configuration.

    Args:
        tree: the folder.
        files: what `find_configs` found, or label files.

    Returns:
        The classes and splits.

    Raises:
        BadAnnotations: several files fit, a folder does not exist, or the names are wrong.
    """
    if not files or files[0].lower().endswith(".txt"):
        return _without_config(tree)
    if len(files) > 1:
        usual = [path for path in files if posixpath.basename(path).lower() in USUAL]
        if len(usual) != 1:
            raise BadAnnotations(
                f"{tree.root} holds several YOLO configurations ({', '.join(files[:5])}): remove the others, or "
                "give the path of one of them instead of the folder"
            )
        files = usual
    path = files[0]
    if path.lower().endswith(".data"):
        pairs = [line.split("=", 1) for line in _text(tree, path).splitlines() if "=" in line]
        content: Any = {key.strip(): value.strip() for key, value in pairs}
        listed = _resolve(tree, path, content, content["names"])
        if listed not in tree.files:
            raise BadAnnotations(f"{tree.root / path}: the list of names {content['names']} is missing: add it")
        content["names"] = [line.strip() for line in _text(tree, str(listed)).splitlines() if line.strip()]
    else:
        content = yaml.load(_text(tree, path), yaml.BaseLoader)  # text only: `no` and `1e3` are names of classes
    has_splits = bool(set(SPLIT_KEYS) & set(content))
    notes = [f"{path} names the classes{' and the splits' if has_splits else ''}"]
    classes = _classes(tree, path, content, notes)
    splits = _splits(tree, path, content, notes) if has_splits else _splits_by_folder(tree, notes)
    return Config(path, classes, splits, "kpt_shape" in content, notes)


def _text(tree: Tree, path: str) -> str:
    return (tree.root / path).read_bytes().decode("utf-8-sig", "replace")


def _is_config(tree: Tree, path: str) -> bool:
    try:
        content = yaml.load(_text(tree, path), yaml.BaseLoader)
    except yaml.YAMLError as error:
        if posixpath.basename(path).lower() in USUAL or tree.only:
            raise BadAnnotations(f"{tree.root / path} is not valid YAML: correct it ({error})") from error
        return False
    if not isinstance(content, dict) or not {"names", "nc"} & set(content):
        return False
    # supervision writes names without splits
    return bool({*SPLIT_KEYS, "nc"} & set(content)) or posixpath.basename(path).lower() in USUAL


def _classes(tree: Tree, path: str, content: dict[str, Any], notes: list[str]) -> dict[int, str] | None:
    """The names by class number."""
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not names:
        notes.append(f"{path} gives no names: the classes are called by their numbers")
        return None
    try:
        classes = {int(number): str(name).strip() for number, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise BadAnnotations(
            f"{tree.root / path}: names is {str(names)[:80]!r}: give a list of names, or numbers with names"
        ) from error
    repeated = sorted({name for name in classes.values() if list(classes.values()).count(name) > 1})
    if repeated or not all(classes.values()):
        raise BadAnnotations(
            f"{tree.root / path}: names repeats {', '.join(repeated)} or holds an empty name: give every class its own"
        )
    count = content.get("nc") or content.get("classes")
    if isinstance(count, str) and count != str(len(classes)):
        notes.append(f"{path} says {count} classes but names {len(classes)}: the names are used")
    return dict(sorted(classes.items()))


def _splits(tree: Tree, path: str, content: dict[str, Any], notes: list[str]) -> dict[str, list[str]]:
    """The images of every split."""
    splits: dict[str, list[str]] = {}
    for key, name in SPLIT_KEYS.items():
        places = content.get(key) or []
        for place in [places] if isinstance(places, str) else places:
            target = _resolve(tree, path, content, place)
            if target is None and name == "test":
                notes.append(f"test: {place} does not exist")
                continue
            if target is None:
                raise BadAnnotations(
                    f"{tree.root / path}: {key} is {place}, which does not exist in {tree.root}: correct the path"
                )
            is_list = target in tree.files
            images = _listed(tree, target) if is_list else [i for i in tree.images if f"/{i}".startswith(f"/{target}/")]
            images = images if is_list or target else list(tree.images)
            notes.append(f"{name}: {len(images):,} images in {target or '.'}")
            splits[name] = sorted({*splits.get(name, []), *images})
    if not splits:
        raise BadAnnotations(f"{tree.root / path}: train and val are empty: give the folders of the images")
    for name in ("val", "test"):
        if shared := len(set(splits.get(name, [])) & set(splits.get("train", []))):
            notes.append(
                f"warning: {shared:,} images of {name} are in train too: its scores say nothing about new images"
            )
    return splits


def _resolve(tree: Tree, path: str, content: dict[str, Any], place: Any) -> str | None:
    """The folder or file that a configuration names, relative to the data set's folder; None if it does not exist.

    `path:` may be absolute, of another machine, or lead upwards: the longest end of the name that exists counts.
    """
    folders = {""} | {posixpath.dirname(file) for file in tree.files}
    for folder in list(folders):
        while folder := posixpath.dirname(folder):
            folders.add(folder)
    base = components(posixpath.dirname(path))
    parts = [*components(str(content.get("path", ""))), *components(str(place))]
    if str(place).strip() in (".", "./", ""):
        return "/".join(base)
    for start in range(len(parts)):
        for before in (base, []):
            target = "/".join([*before, *parts[start:]])
            if target in folders or target in tree.files:
                return target
    return None


def _listed(tree: Tree, path: str) -> list[str]:
    """The images that a text file lists. Those that do not exist are kept, so that they are reported."""
    images = []
    for line in _text(tree, path).splitlines():
        if parts := components(line):
            found = tree.find_image(line, near=path)
            images.append(found[0] if len(found) == 1 else "/".join(parts))
    return images


def _without_config(tree: Tree) -> Config:
    """Label files beside a list of names, or alone."""
    lists = [path for path in tree.files if posixpath.basename(path).lower() in NAME_LISTS]
    texts = {path: [line.strip() for line in _text(tree, path).splitlines() if line.strip()] for path in lists}
    if len({tuple(names) for names in texts.values()}) > 1:
        raise BadAnnotations(f"{tree.root}: {', '.join(lists[:5])} differ: keep one list of class names")
    notes: list[str] = []
    if lists:
        content: dict[str, Any] = {"names": texts[lists[0]]}
        notes.append(f"{lists[0]} names the classes")
        classes = _classes(tree, lists[0], content, notes)
    else:
        notes.append("there is no list of names (data.yaml, classes.txt): the classes are called by their numbers")
        classes = None
    return Config("", classes, _splits_by_folder(tree, notes), False, notes)


def _splits_by_folder(tree: Tree, notes: list[str]) -> dict[str, list[str]]:
    """The images of every split, by the names of their folders."""
    images = [path for path in tree.images if not is_mask_folder(path)] or tree.images
    splits = by_folder(images, notes)
    notes += [f"{name}: {len(paths):,} images" for name, paths in splits.items()]
    return splits
