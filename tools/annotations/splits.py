"""A validation split for data that come without one. Near-duplicates stay on one side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.errors import InvalidValue

from .findings import BadAnnotations
from .similar import near_duplicates, perceptual_hashes

EMPTY = object()  # the class of images without objects


def split_content(
    content: Mapping[str, Any], images: Path, *, val_fraction: float = 0.2, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split COCO's content into train and val.

    Near-duplicate images (`similar.near_duplicates`) form a group that stays together. Groups are drawn at random, the
    rarest classes first, until val holds `val_fraction` of every class's images. Every class keeps a group in train;
    one that is in two or more groups also has one in val, unless that would take another class's last one from train.
    Where a group is so large that val would stay below half of its size (frames of a video, a fixed camera), it is cut
    into runs of consecutive file names, so that near-duplicates meet at the runs' ends only.

    Args:
        content: COCO's content: "images", "annotations", "categories". Crowds and ignored objects do not count as
            objects here.
        images: the folder that the file names are relative to.
        val_fraction: of the images, between 0 and 1.
        seed: of the draw; equal seeds give equal splits, whatever the order of the images.

    Returns:
        The contents of train and val. Ids are kept, both have all categories. "info"/"split" says in a sentence how
        the split was made.

    Raises:
        BadAnnotations: there are fewer than two images, or each holds the only objects of a class.
        InvalidValue: `val_fraction` is not between 0 and 1, or `seed` is negative.
    """
    if not 0 < val_fraction < 1:
        raise InvalidValue(f"val_fraction={val_fraction}: give a number between 0 and 1")
    if seed < 0:
        raise InvalidValue(f"seed={seed}: give 0 or more")
    entries = sorted(content["images"], key=lambda entry: str(entry["file_name"]))
    if len(entries) < 2:
        raise BadAnnotations(
            f"{images}: {len(entries)} image is not enough for train and val: add images, or give a val split"
        )
    groups = _groups([images / str(entry["file_name"]) for entry in entries])
    classes = _classes_of(content, entries)
    target = max(1, round(val_fraction * len(entries)))
    in_groups = len(entries) - sum(len(group) == 1 for group in groups)
    said = f"seed {seed}; {in_groups:,} of {len(entries):,} images have near-duplicates, which stay together"
    val = _draw(groups, classes, target, val_fraction, seed)
    if 2 * len(val) < target:
        groups = _cut(groups, max(1, target // 2))
        said += "; large groups of near-duplicates are cut into runs of consecutive file names"
        val = _draw(groups, classes, target, val_fraction, seed)
    if not val:
        raise BadAnnotations(
            f"{images}: every image holds the only objects of a class, so that none can go to val: add images, or give "
            "a val split"
        )
    val_ids = {entries[i]["id"] for i in val}
    said = f"val: {len(val):,} of {len(entries):,} images, {said}"
    return _part(content, val_ids, False, said), _part(content, val_ids, True, said)


def _groups(paths: Sequence[Path]) -> list[list[int]]:
    """Near-duplicates together, every other image alone; ordered by the first index."""
    groups = near_duplicates(perceptual_hashes(paths))
    grouped = {i for group in groups for i in group}
    return sorted([*groups, *([i] for i in range(len(paths)) if i not in grouped)])


def _classes_of(content: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[set[Any]]:
    """The categories in every image; {EMPTY} for an image without objects."""
    by_image: dict[Any, set[Any]] = defaultdict(set)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd") and not annotation.get("ignore"):
            by_image[annotation["image_id"]].add(annotation["category_id"])
    return [by_image.get(entry["id"]) or {EMPTY} for entry in entries]


def _cut(groups: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Groups in pieces of at most `size` consecutive indices."""
    return sorted(list(group[start : start + size]) for group in groups for start in range(0, len(group), size))


def _draw(
    groups: Sequence[Sequence[int]], classes: Sequence[set[Any]], target: int, fraction: float, seed: int
) -> list[int]:
    """The indices of the images of val."""
    held = [Counter(c for i in group for c in classes[i]) for group in groups]  # images of every class in a group
    total: Counter[Any] = Counter()
    for counts in held:
        total.update(counts)
    groups_of: dict[Any, list[int]] = defaultdict(list)
    for number in np.random.default_rng(seed).permutation(len(groups)).tolist():
        for c in held[number]:
            groups_of[c].append(number)
    in_train = Counter({c: len(numbers) for c, numbers in groups_of.items()})
    chosen: dict[int, None] = {}
    val: Counter[Any] = Counter()
    size = 0

    def take(number: int) -> None:
        nonlocal size
        chosen[number] = None
        in_train.subtract(dict.fromkeys(held[number], 1))
        val.update(held[number])
        size += len(groups[number])

    def may_leave_train(number: int) -> bool:
        return all(in_train[c] > 1 or c is EMPTY for c in held[number])

    order = sorted(groups_of, key=lambda c: (len(groups_of[c]), total[c], c is EMPTY, str(c) if c is not EMPTY else ""))
    for c in order:
        candidates = [number for number in groups_of[c] if number not in chosen]
        share = fraction * total[c]
        for number in candidates:
            fits = val[c] + held[number][c] / 2 <= share and size + len(groups[number]) / 2 <= target
            if fits and may_leave_train(number):
                take(number)
        if not val[c] and c is not EMPTY:  # every group is too large for its share: the smallest one
            possible = [number for number in candidates if may_leave_train(number)]
            if possible:
                take(min(possible, key=lambda number: (len(groups[number]), groups[number][0])))
    rest = [number for c in order for number in groups_of[c] if number not in chosen]
    for number in dict.fromkeys(rest):
        if size + len(groups[number]) / 2 <= target and may_leave_train(number) and len(chosen) + 1 < len(groups):
            take(number)
    return sorted(i for number in chosen for i in groups[number])


def _part(content: Mapping[str, Any], val_ids: set[Any], is_val: bool, said: str) -> dict[str, Any]:
    """The images of one side with their annotations."""
    info = content.get("info")
    return {
        **content,
        "info": {**(info if isinstance(info, dict) else {}), "split": said},
        "images": [entry for entry in content["images"] if (entry["id"] in val_ids) == is_val],
        "annotations": [entry for entry in content["annotations"] if (entry["image_id"] in val_ids) == is_val],
    }
