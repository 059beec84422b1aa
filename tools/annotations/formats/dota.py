"""DOTA's label files: quadrilaterals with a class and a flag "difficult" per line.

The box is the one that encloses the quadrilateral, which is kept as the outline.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .outlines import box_of
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import Tree, by_folder, stem
from .voc import image_of

NUMBER = r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?"
LINE = re.compile(rf"\s*(?:{NUMBER}[\s,]+){{8}}(?!{NUMBER}[\s,]*$)\S+(?:[\s,]+\d+)?\s*", re.IGNORECASE)
HEADER = re.compile(r"\s*(imagesource|gsd|acquisition dates)\s*:.*", re.IGNORECASE)
TRIED = 50


def find(tree: Tree) -> list[str]:
    """The label files of a DOTA data set.

    Args:
        tree: the folder.

    Returns:
        Paths relative to the folder.
    """
    texts = tree.with_suffix(".txt")
    tried = 0
    for path in (path for path in texts if tree.find_stem(stem(path))):
        lines = _objects(tree, path)
        if lines and LINE.fullmatch(lines[0][1]):
            return [path for path in texts if _is_label_file(tree, path)]
        tried += bool(lines)
        if tried == TRIED:
            break
    return []


def _is_label_file(tree: Tree, path: str) -> bool:
    """Whether a text file has the name of an image, or holds objects without having one."""
    if tree.find_stem(stem(path)):
        return True
    lines = _objects(tree, path)
    return bool(lines) and LINE.fullmatch(lines[0][1]) is not None


def _objects(tree: Tree, path: str) -> list[tuple[int, str]]:
    """(number, line) of the lines that are neither empty nor a header."""
    lines = (tree.root / path).read_bytes().decode("utf-8-sig", "replace").splitlines()
    return [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not HEADER.fullmatch(line)]


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert DOTA's label files.

    Args:
        tree: the folder.
        files: the label files.

    Returns:
        The data set, with the splits that the folders' names give.
    """
    notes = [f"{len(files):,} label files", "boxes are not rotated: they enclose the quadrilaterals, kept as outlines"]
    drafts = []
    for name, paths in by_folder(files, notes).items():
        draft = Draft.of(name, tree.root)
        taken: dict[str, str] = {}
        for path in paths:
            lines = _objects(tree, path)
            image_path = image_of(tree, draft, path, "")
            if image_path is not None and image_path in taken:
                entry, fix = f"{path} and {taken[image_path]}", "keep one of them"
                draft.findings.add("refused", "several label files for one image", unit="image", entry=entry, fix=fix)
                image_path = None
            image = None if image_path is None else sized_image(tree, draft, image_path)
            if image is None:
                draft.lose_objects(len(lines), path)
                continue
            taken[image.path] = path
            for number, line in lines:
                _read_line(draft, image, line, f"{path}:{number}")
        drafts.append(draft)
    return Folder("DOTA", finish(tree, drafts), notes)


def _read_line(draft: Draft, image: DraftImage, line: str, entry: str) -> None:
    """Add the object of one line."""
    words = re.split(r"[\s,]+", line.strip())
    try:
        polygon = [float(word) for word in words[:8]]
    except ValueError:
        polygon = []
    if len(polygon) != 8 or not all(map(math.isfinite, polygon)) or len(words) not in (9, 10):
        fix = "a line is x1 y1 x2 y2 x3 y3 x4 y4 class difficult"
        draft.findings.add("refused", "line that is not eight numbers and a class", entry=entry, came=line, fix=fix)
        return
    box = box_of([polygon])
    if min(box[2:]) <= 0:
        draft.findings.add("dropped", "object of no area", entry=entry, came=line)
        return
    ignore = len(words) == 10 and words[9] not in ("0", "0.0")
    if ignore:
        draft.findings.add("note", "object marked difficult: left out of training, ignored in scoring")
    image.add(words[8], box, segmentation=[polygon], ignore=ignore)
