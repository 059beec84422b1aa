"""YOLO's label files, as ultralytics, darknet, CVAT, Roboflow and LabelImg write them.

A line is a class number and a box (centre x, centre y, width, height) or a polygon, in fractions of the image. An image
without a label file is an image without objects, as in ultralytics.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice

from .outlines import box_of
from .structures import Draft, DraftImage, Folder, finish, sized_image
from .tree import Tree, nearest, stem
from .yolo_config import Config, find_configs, read_config

LINE = re.compile(r"\s*\d+(\.0*)?(\s+[-+]?[\d.]+(e[-+]?\d+)?){4,}\s*", re.IGNORECASE)
TOLERANCE = 0.01  # of the image: rounding beyond its edge, as ultralytics allows
NOT_LABELS = re.compile(r"(^|/)(classes|obj|train|val|valid|test|readme[^/]*)\.txt$", re.IGNORECASE)


def find(tree: Tree) -> list[str]:
    """The files that show a YOLO data set.

    Args:
        tree: the folder.

    Returns:
        The configuration files (`data.yaml`, `obj.data`), otherwise the label files; relative to the folder.
    """
    if configs := find_configs(tree):
        return configs
    stems = {stem(image) for image in tree.images}
    texts = [path for path in tree.with_suffix(".txt") if stem(path) in stems and not NOT_LABELS.search(path)]
    tried = 0
    for path in texts:
        lines = [line for line in _lines(tree, path) if line.strip()]
        if lines and LINE.fullmatch(lines[0]):
            return texts
        tried += bool(lines)
        if tried == 50:
            break
    return []


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Convert YOLO label files.

    Args:
        tree: the folder.
        files: what `find` found.

    Returns:
        The data set.
    """
    config = read_config(tree, files)
    texts = {path for path in tree.files if path.lower().endswith(".txt") and not NOT_LABELS.search(path)}
    drafts, used = [], set()
    for name, images in config.splits.items():
        draft = Draft.of(name, tree.root / config.path if config.path else tree.root)
        unlabelled = []
        label_files = label_files_of(images, texts, config)
        for path, labels in label_files.items():
            used.add(labels)
            if labels is None:
                unlabelled.append(path)
            _read_image(tree, draft, config, path, labels)
        if unlabelled and len(unlabelled) == len(images) and name == "test":
            config.notes.append("test: no image has a label file: this split is left out")
            continue
        if unlabelled and len(unlabelled) == len(images):
            fix = "put them beside the images, or into labels/ where the images are in images/"
            draft.findings.add(
                "refused", "no image has a label file", unit="image", entry=unlabelled[0], count=len(images), fix=fix
            )
        elif unlabelled:
            what = "image without a label file: used as an image without objects"
            draft.findings.add("note", what, unit="image", entry=unlabelled[0], count=len(unlabelled))
        drafts.append(draft)
    _orphans(tree, drafts, sorted(texts - used))
    if config.classes is None:
        numbers = sorted({int(entry["label"]) for d in drafts for image in d.images for entry in image.objects})
        for entry in (entry for d in drafts for image in d.images for entry in image.objects):
            entry["label"] = f"class {entry['label']}"
        classes = [f"class {number}" for number in numbers]
    else:
        classes = list(config.classes.values())
    return Folder("YOLO", finish(tree, drafts, classes), config.notes)


def label_files_of(images: Sequence[str], texts: set[str], config: Config) -> dict[str, str | None]:
    """The label files of the images of a split.

    Args:
        images: relative to the data set's folder.
        texts: the text files there.
        config: of the data set. Where no image has a label file in the usual places, the files below the
            configuration's folder are searched for the stems, and this is noted.

    Returns:
        {image: label file or None}.
    """
    files = {image: label_file(image, texts) for image in images}
    if any(files.values()):
        return files
    base = posixpath.dirname(config.path)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in texts:
        if not base or path.startswith(f"{base}/"):
            by_stem[stem(path)].append(path)
    found = {image: nearest(by_stem.get(stem(image), []), near=image) for image in images}
    files = {image: paths[0] if len(paths) == 1 else None for image, paths in found.items()}
    if example := next((path for path in files.values() if path), None):
        config.notes.append(f"label files are found by the images' names, such as {example}")
    return files


def label_file(image: str, texts: set[str]) -> str | None:
    """The label file of an image.

    Args:
        image: relative to the data set's folder.
        texts: the text files there.

    Returns:
        The file where the last component "images" of the folder is "labels"; otherwise the one beside the image, or in
        a folder "labels" beside the image's; None if there is none.
    """
    folder, name = posixpath.split(image)
    parts = folder.split("/")
    places = [folder, posixpath.join(folder, "labels"), posixpath.join(posixpath.dirname(folder), "labels")]
    lower = [part.lower() for part in parts]
    if "images" in lower:
        at = len(lower) - 1 - lower[::-1].index("images")
        for labels in ("Labels", "labels"):
            places.insert(0, "/".join([*parts[:at], labels, *parts[at + 1 :]]))
    for place in places:
        path = posixpath.join(place, f"{posixpath.splitext(name)[0]}.txt")
        if path in texts:
            return path
    return None


def _lines(tree: Tree, path: str) -> list[str]:
    """The lines of a text file; bytes that are not UTF-8 cannot match a number and stay visible."""
    return (tree.root / path).read_bytes().decode("utf-8-sig", "replace").splitlines()


def _read_image(tree: Tree, draft: Draft, config: Config, path: str, labels: str | None) -> None:
    """Add an image and the objects of its label file."""
    lines = [(i, line) for i, line in enumerate(_lines(tree, labels), 1) if line.strip()] if labels else []
    image = sized_image(tree, draft, path)
    if image is None:
        draft.lose_objects(len(lines), labels or "")
        return
    for number, line in lines:
        _read_line(draft, image, config, line, f"{labels}:{number}")


def _read_line(draft: Draft, image: DraftImage, config: Config, line: str, entry: str) -> None:
    """Add the object of one line."""
    findings = draft.findings

    def refuse(what: str, fix: str) -> None:
        findings.add("refused", what, entry=entry, came=line.strip(), fix=fix)

    try:
        values = [float(value) for value in line.split()]
    except ValueError:
        return refuse("line that is not all numbers", "a line is a class number and a box or polygon in fractions")
    if not all(math.isfinite(value) for value in values) or values[0] != int(values[0]) or values[0] < 0:
        return refuse("class that is no whole number, or a value that is not finite", "correct the line")
    number, values = int(values[0]), values[1:]
    if config.classes is not None and number not in config.classes:
        known = f"{min(config.classes, default=0)} to {max(config.classes, default=0)}"
        return refuse(f"class number that is not among the names ({known})", "add its name, or correct the line")
    if config.keypoints and len(values) > 4:
        values = values[:4]
        findings.add("note", "object with key points, which are not used", entry=entry)
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        fix = "4 make a box; 6 or more, in pairs, a polygon; a fifth is a prediction's score, to be removed"
        return refuse(f"{len(values)} values after the class", fix)
    is_box = len(values) == 4
    if min(values) < -TOLERANCE or max(values) > 1 + TOLERANCE or (is_box and min(values[2:]) < 0):
        return refuse("value outside of 0..1", "divide pixels by the image's width and height")
    if min(values) < 0 or max(values) > 1:
        findings.add("warning", "value just outside of 0..1: used as it is", entry=entry, came=line.strip())
    label = str(number) if config.classes is None else config.classes[number]
    if is_box:
        x, y, w, h = values
        box = [(x - w / 2) * image.width, (y - h / 2) * image.height, w * image.width, h * image.height]
        polygons = None
    else:
        pairs = zip(islice(values, 0, None, 2), islice(values, 1, None, 2))
        polygons = [[v for x, y in pairs for v in (x * image.width, y * image.height)]]
        box = box_of(polygons)
    if min(box[2:]) <= 0:
        findings.add("dropped", "object of no area", entry=entry, came=line.strip())
    else:
        image.add(label, box, segmentation=polygons)


def _orphans(tree: Tree, drafts: Sequence[Draft], texts: Sequence[str]) -> None:
    """Say which label files were not used; the objects in those without an image are counted."""
    for path in texts if drafts else ():
        count = sum(bool(LINE.fullmatch(line)) for line in _lines(tree, path))
        if count and tree.find_stem(stem(path)):
            what = "label file that is not used: its image is in no split, or has another one"
            drafts[0].findings.add("note", what, unit="file", entry=path)
        elif count:
            fix = "add the image, or remove the file"
            drafts[0].findings.add("dropped", "label file without an image", unit="file", entry=path, fix=fix)
            drafts[0].lose_objects(count, path)
