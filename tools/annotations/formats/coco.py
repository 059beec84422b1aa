"""COCO files, where annotation tools put them. They are found here and read by the validated reader."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from ..findings import BadAnnotations, Findings
from .json_kind import image_names
from .structures import Folder, Split
from .tree import Tree, components, split_of

# files of COCO's own archives that hold other tasks
OTHER_TASKS = re.compile(r"^(captions|person_keypoints|stuff|panoptic|image_info)_")


def tool_of(path: str, folder: str) -> str:
    """The tool whose export has this layout of file names.

    Args:
        path: the annotation file, relative to the data set's folder.
        folder: the folder of the images, relative to it.

    Returns:
        Such as "COCO (Roboflow)"; "COCO" for a layout that several tools share.
    """
    name, parent = posixpath.basename(path), posixpath.basename(posixpath.dirname(path))
    images = posixpath.basename(folder)
    rules = (
        ("Roboflow", name == "_annotations.coco.json"),
        ("CVAT", parent == "annotations" and name == "instances_default.json"),
        ("FiftyOne", name == "labels.json" and images == "data"),
        ("Label Studio", name in ("result.json", "result_coco.json") and images in ("images", "")),
        ("LVIS", name.startswith("lvis_")),
        ("labelme", images == "JPEGImages"),
        ("VIA", name.startswith("via_")),
    )
    tool = next((tool for tool, fits in rules if fits), None)
    return f"COCO ({tool})" if tool else "COCO"


def read(tree: Tree, files: Sequence[str]) -> Folder:
    """Find the splits of COCO files and their images.

    Args:
        tree: the folder.
        files: the COCO files in it.

    Returns:
        The data set; the content of the splits is left to the reader.

    Raises:
        BadAnnotations: several files fit one split.
    """
    notes: list[str] = []
    chosen = _one_per_split(tree, files, notes)
    splits, tools = {}, []
    for name, path in chosen.items():
        folder, found, looked_for = image_folder(tree, path)
        tools.append(tool_of(path, folder))
        notes.append(
            f"{name}: {path}, images in {folder or '.'} ({found} of the first {looked_for} file names are there)"
        )
        source = tree.root / path
        splits[name] = Split(name, tree.root / folder, None, source, Findings(source))
    return Folder(tools[0], splits, notes)


def _one_per_split(tree: Tree, files: Sequence[str], notes: list[str]) -> dict[str, str]:
    """The file of every split, {name: path}."""
    if tree.only is not None:
        return {"all": tree.only}
    usable = [path for path in files if not OTHER_TASKS.match(posixpath.basename(path))] or list(files)
    by_split: dict[str, list[str]] = defaultdict(list)
    for path in usable:
        by_split[split_of(path, with_stem=True) or "all"].append(path)
    if "train" in by_split and "all" in by_split:
        by_split.pop("all")
    for name, paths in by_split.items():
        instances = [path for path in paths if posixpath.basename(path).startswith("instances_")]
        by_split[name] = instances if len(instances) == 1 else paths
    if set(by_split) == {"all", "val"} and len(by_split["all"]) == len(by_split["val"]) == 1:
        train, val = (set(image_names(tree.root / by_split[name][0], None)) for name in ("all", "val"))
        if not train & val:
            by_split["train"] = by_split.pop("all")
            notes.append(f"{by_split['train'][0]} is used for train: it lists no image of val")
    several = {name: paths for name, paths in by_split.items() if len(paths) > 1}
    if several or ("all" in by_split and len(by_split) > 1):
        listed = "; ".join(f"{name}: {', '.join(paths[:5])}" for name, paths in sorted((several or by_split).items()))
        raise BadAnnotations(
            f"{tree.root} holds several COCO files and their names do not tell which to use ({listed}): remove "
            "those that are not to be used, give the path of one file instead of the folder, or name one file of each "
            "split with train, val and test"
        )
    not_used = sorted(set(files) - {paths[0] for paths in by_split.values()})
    if not_used:
        notes.append(f"not read: {', '.join(not_used[:5])}{' ...' if len(not_used) > 5 else ''}")
    order = ("train", "val", "test", "all")
    return {name: by_split[name][0] for name in order if name in by_split}


def image_folder(tree: Tree, path: str) -> tuple[str, int, int]:
    """Find the folder that the file names in a COCO file are relative to.

    The folder in which most of the first file names exist wins; a name may have more leading components than the
    folder. Of folders with equally many the one named after the file's split wins, then the one nearest to the file.

    Args:
        tree: the folder of the data set.
        path: the COCO file, relative to it.

    Returns:
        The images' folder, relative to the data set's, how many of the names exist in it, and how many were tried.
    """
    names = image_names(tree.root / path)
    images = set(tree.images)
    by_name: dict[str, list[str]] = defaultdict(list)
    for image in tree.images:
        by_name[posixpath.basename(image)].append(image)
    votes: Counter[str] = Counter()
    for name in names:
        parts = components(name)
        for candidate in by_name.get(parts[-1], []) if parts else []:
            own = candidate.split("/")
            agree = 0
            while agree < min(len(own), len(parts)) and own[-1 - agree] == parts[-1 - agree]:
                agree += 1
            votes["/".join(own[: len(own) - agree])] += 1
    if not votes:
        return _folder_by_name(tree, path), 0, len(names)

    def rank(folder: str) -> tuple[int, bool, bool, int]:
        own_split = split_of(path, with_stem=True)
        is_own = own_split is not None and split_of(f"{folder}/x") == own_split
        near = posixpath.dirname(path)
        shared = len(set(folder.split("/")) & set(near.split("/")))
        return votes[folder], is_own, folder == near, shared

    best = max(sorted(votes), key=rank)
    found = sum("/".join([*([best] if best else []), *components(name)]) in images for name in names)
    return best, found or votes[best], len(names)


def _folder_by_name(tree: Tree, path: str) -> str:
    """The images' folder where no file name of the annotations exists: the one with images and the split's name."""
    folders = sorted(
        {posixpath.dirname(image) for image in tree.images}, key=lambda folder: (folder.count("/"), folder)
    )
    own_split = split_of(path, with_stem=True)
    for folder in folders:
        if own_split is not None and split_of(f"{folder}/x") == own_split:
            return folder
    return folders[0] if folders else posixpath.dirname(path)
