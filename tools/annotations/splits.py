"""A validation split for data that come without one. Near-duplicates stay on one side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.errors import InvalidValue

from .findings import BadAnnotations, Findings
from .similar import near_duplicates, perceptual_hashes
from .table import AnnotationTable

EMPTY = object()  # the class of images without objects


def split_table(
    table: AnnotationTable, *, val_fraction: float = 0.2, seed: int = 0
) -> tuple[AnnotationTable, AnnotationTable, str]:
    """Split a data set into train and val.

    Args:
        table: the data set, with the paths of its images. Crowds and ignored objects do not count as objects here.
        val_fraction: as for `choose_val`.
        seed: as for `choose_val`.

    Returns:
        Train, which keeps the findings; val; and a sentence about how the split was made.

    Raises:
        BadAnnotations: as for `choose_val`.
        InvalidValue: as for `choose_val`.
    """
    classes: list[set[Hashable]] = [set() for _ in table.image_ids]
    for image, label, crowd in zip(table.images_of_rows(), table.labels[table.rows], table.crowd[table.rows]):
        if not crowd:
            classes[image].add(int(label))
    in_val, said = choose_val(table.paths, classes, table.source, val_fraction=val_fraction, seed=seed)
    train, val = table.with_images(~in_val), table.with_images(in_val)
    # what was dropped counts once, with the findings
    train = replace(train, objects_in_file=table.objects_in_file - len(val.rows))
    val = replace(val, objects_in_file=len(val.rows), findings=Findings(table.source))
    return train, val, said


def choose_val(
    paths: Sequence[Path],
    classes: Sequence[AbstractSet[Hashable]],
    source: Path | str,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> tuple[np.ndarray, str]:
    """Choose the images of a validation split.

    Near-duplicate images (`similar.near_duplicates`) form a group that stays together. Groups are drawn at random, the
    rarest classes first, until val holds `val_fraction` of every class's images. Every class keeps a group in train;
    one that is in two or more groups also has one in val, unless that would take another class's last one from train.
    Where a group is so large that val would stay below half of its size (frames of a video, a fixed camera), it is cut
    into runs of consecutive file names, so that near-duplicates meet at the runs' ends only.

    Args:
        paths: N image files.
        classes: the classes of the objects in every image; an empty set for an image without objects.
        source: what is split, for messages.
        val_fraction: of the images, between 0 and 1.
        seed: of the draw; equal seeds give equal splits, whatever the order of the images.

    Returns:
        Which images are in val, (N,) bool; and a sentence about how they were chosen.

    Raises:
        BadAnnotations: there are fewer than two images, or each holds the only objects of a class.
        InvalidValue: `val_fraction` is not between 0 and 1, or `seed` is negative.
    """
    if not 0 < val_fraction < 1:
        raise InvalidValue(f"val_fraction={val_fraction}: give a number between 0 and 1")
    if seed < 0:
        raise InvalidValue(f"seed={seed}: give 0 or more")
    if len(paths) < 2:
        raise BadAnnotations(
            f"{source}: {len(paths)} image is not enough for train and val: add images, or give a val split"
        )
    order = sorted(range(len(paths)), key=lambda i: str(paths[i]))
    held = [set(classes[i]) or {EMPTY} for i in order]
    groups = _groups([paths[i] for i in order])
    target = max(1, round(val_fraction * len(paths)))
    in_groups = len(paths) - sum(len(group) == 1 for group in groups)
    said = f"seed {seed}; {in_groups:,} of {len(paths):,} images have near-duplicates, which stay together"
    chosen = _draw(groups, held, target, val_fraction, seed)
    if 2 * len(chosen) < target:
        groups = _cut(groups, max(1, target // 2))
        said += "; large groups of near-duplicates are cut into runs of consecutive file names"
        chosen = _draw(groups, held, target, val_fraction, seed)
    if not chosen:
        raise BadAnnotations(
            f"{source}: every image holds the only objects of a class, so that none can go to val: add images, or give "
            "a val split"
        )
    in_val = np.zeros(len(paths), dtype=bool)
    in_val[[order[i] for i in chosen]] = True
    return in_val, f"val: {len(chosen):,} of {len(paths):,} images, {said}"


def _groups(paths: Sequence[Path]) -> list[list[int]]:
    """Near-duplicates together, every other image alone; ordered by the first index."""
    groups = near_duplicates(perceptual_hashes(paths))
    grouped = {i for group in groups for i in group}
    return sorted([*groups, *([i] for i in range(len(paths)) if i not in grouped)])


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
