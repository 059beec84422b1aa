"""Checks of annotations by counting and comparing: what was found on reading, sizes, classes, duplicates and leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco

from heads.images import resized_size
from heads.masks import BitMasks, PolygonMasks
from heads.structures import ImageSize, Targets
from resnet_backbone.errors import InvalidValue
from tools.annotations.similar import content_hash, near_duplicates, perceptual_hashes
from tools.annotations.table import NO_OUTLINE
from tools.config.detection import RunConfig
from tools.data.coco import CocoData, ImageRecord
from tools.evaluation.scores import MAX_DETECTIONS

from .detection_data import compare_classes

MAX_DISAGREEING = 0.05  # of the objects with box and outline
RARE, IMBALANCE = 10, 100.0  # objects of a class; most common class over the rarest one
MATCHING_IOU = 0.95  # the highest threshold of AP


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        passed: whether it is as expected.
        measured: what was measured.
        cause: the likely cause if it did not pass, or what to do.
        split: "train" or "val"; empty for what concerns both, or a weight file.
        look: whether it passed, but a person should look at it.
    """

    name: str
    passed: bool
    measured: str
    cause: str
    split: str = ""
    look: bool = False

    @property
    def verdict(self) -> str:
        """The result in one word: "yes", "look" or "NO"."""
        return ("look" if self.look else "yes") if self.passed else "NO"


def check_findings(data: CocoData, split: str) -> list[Check]:
    """Report what reading found: how many objects are used, and every finding.

    Args:
        data: the split.
        split: its name.

    Returns:
        One check for the counts, and one for each kind of finding.
    """
    table = data.table
    dropped = table.findings.count("dropped")
    used = f"{len(table.rows):,} of {table.objects_in_file:,} objects are used, {dropped:,} dropped"
    checks = [Check("annotations", len(table.rows) > 0, used, "see the rows below", split, look=dropped > 0)]
    with_both = int((table.outlines.kinds[table.rows] != NO_OUTLINE).sum())
    for group in table.findings:
        disagree = group.what.startswith("box and outline disagree") and group.count > MAX_DISAGREEING * with_both
        measured = group.line().removesuffix(f": {group.fix}") if group.fix else group.line()
        look = group.severity != "note"
        checks.append(Check(group.severity, not disagree, measured, group.fix, split, look=look))
    return checks


def file_hashes(data: CocoData) -> list[str]:
    """Hash the image files of a split; `check_statistics` and `check_pair` compare them.

    Args:
        data: the split.

    Returns:
        N hashes, as from `content_hash`.
    """
    return [content_hash(path) for path in data.table.paths]


def check_statistics(data: CocoData, hashes: Sequence[str], config: RunConfig, split: str) -> list[Check]:
    """Check what makes training hard without being wrong: few or small objects, many in one image, duplicates.

    Args:
        data: the split.
        hashes: N hashes of its image files.
        config: the settings; `model` and `input` are used.
        split: its name.

    Returns:
        The checks; they pass, and ask for a look where a figure is unusual.
    """
    counts = data.summary()["categories"]
    unlabelled = int((data.objects_per_image == 0).sum())
    images = len(data.table.image_ids)
    hint = "right if they show none of the objects; else label them"
    return [
        _classes(counts, split),
        Check("unlabelled images", True, f"{unlabelled:,} of {images:,}", hint, split, look=unlabelled > 0),
        _crowded(data, config, split),
        _small(data, config, split),
        _copies(data, hashes, split),
    ]


def _classes(counts: dict[str, int], split: str) -> Check:
    rare = [f"{name} {count}" for name, count in counts.items() if count < RARE]
    ratio = max(counts.values()) / max(1, min(counts.values()))
    measured = f"{len(counts)} classes, the most common has {ratio:,.0f} times the objects of the rarest"
    if rare:
        measured += f"; fewer than {RARE} objects: {', '.join(rare[:8])}{' ...' if len(rare) > 8 else ''}"
    cause = "label more of the rare classes, or merge them (data.classes)"
    return Check("classes", True, measured, cause, split, look=bool(rare) or ratio > IMBALANCE)


def _crowded(data: CocoData, config: RunConfig, split: str) -> Check:
    most, limit = int(data.objects_per_image.max()), config.model.box.max_detections
    image = data.table.image_ids[int(data.objects_per_image.argmax())]
    measured = f"at most {most} (image {image}); the detector returns at most {limit}"
    return Check("objects per image", True, measured, "raise model.box.max_detections", split, look=most > limit)


def _small(data: CocoData, config: RunConfig, split: str) -> Check:
    """Objects smaller than half of the smallest anchor, at the size of the network's input."""
    sizes = [ImageSize(height=h, width=w) for h, w in data.table.sizes.tolist()]
    side, limit = config.input.test_short_side_px, config.input.long_side_px
    scales = np.array([resized_size(s, short_side_px=side, long_side_px=limit).height / s.height for s in sizes])
    corners, images = data.corners[data.trained], data.table.images_of_rows()[data.trained]
    lengths = np.sqrt((corners[:, 2:] - corners[:, :2]).prod(axis=1)) * scales[images]
    anchor = min(size for sizes in config.model.rpn.anchor_sizes_px for size in sizes)
    small = int((lengths < anchor / 2).sum())
    measured = (
        f"{small:,} of {len(lengths):,} are smaller than half of the smallest anchor ({anchor:g} px) at a short side "
        f"of {side} px; median {np.median(lengths):.0f} px"
    )
    cause = "raise input.test_short_side_px and input.short_side_px, or lower model.rpn.anchor_sizes_px"
    return Check("small objects", True, measured, cause, split, look=small > 0.1 * len(lengths))


def _copies(data: CocoData, hashes: Sequence[str], split: str) -> Check:
    groups: dict[str, list[str]] = {}
    for digest, name in zip(hashes, data.table.file_names):
        groups.setdefault(digest, []).append(name)
    copies = [names for names in groups.values() if len(names) > 1]
    count = sum(len(names) - 1 for names in copies)
    shown = "; ".join(" = ".join(names[:3]) for names in copies[:3])
    measured = f"{count} of {len(hashes)} images are copies of another" + (f" ({shown})" if shown else "")
    return Check("copies", True, measured, "remove them", split, look=count > 0)


def check_pair(splits: Mapping[str, CocoData], hashes: Mapping[str, Sequence[str]]) -> list[Check]:
    """Check that train and val have classes in common and no image.

    Args:
        splits: "train" and "val", without those that could not be read.
        hashes: hashes of the image files of each split.

    Returns:
        The checks; none without both splits.
    """
    if not {"train", "val"} <= splits.keys():
        return []
    train, val = splits["train"], splits["val"]
    try:
        unmatched = compare_classes(train, val)
    except InvalidValue as error:
        return [Check("same classes", False, str(error), "the splits belong to different data sets")]
    measured = "; ".join(unmatched) or f"all {len(val.class_names)}"
    checks = [Check("same classes", True, measured, "rename them, or add examples", look=bool(unmatched))]
    mine = dict(zip(hashes["train"], train.table.file_names))
    leaked = [(mine[digest], name) for digest, name in zip(hashes["val"], val.table.file_names) if digest in mine]
    total = len(val.table.paths)
    shown = ", ".join(f"{a} = {b}" for a, b in leaked[:3])
    measured = f"{len(leaked)} of {total} validation images are in train too" + (f" ({shown})" if shown else "")
    checks.append(Check("leaks", not leaked, measured, "remove them from one of the splits"))
    pairs = near_duplicates(perceptual_hashes(train.table.paths), perceptual_hashes(val.table.paths))
    exact = {name for _, name in leaked}
    near = [(a, b) for a, b in pairs if val.table.file_names[b] not in exact]
    shown = ", ".join(f"{train.table.file_names[a]} ~ {val.table.file_names[b]}" for a, b in near[:3])
    alike = len({b for _, b in near})
    measured = f"{alike} of {total} validation images resemble one of train" + (f" ({shown})" if shown else "")
    hint = "frames of one scene belong into one split; scores are too high otherwise"
    return [*checks, Check("near-duplicates", True, measured, hint, look=alike > 0)]


def too_many(read: Sequence[ImageRecord], limit: int) -> str:
    """What to say about images with more objects of a class than are scored.

    Args:
        read: the images.
        limit: detections of a class that are scored in an image.

    Returns:
        A sentence; empty if there is no such image.
    """
    most = max((int(np.bincount(record.labels).max(initial=0)) for record in read), default=0)
    if most <= limit:
        return ""
    return (
        f"{most} objects of a class in one image, but only {limit} detections are scored"
        f"{' (the limit of COCO)' if limit == MAX_DETECTIONS else ''}: set eval.max_detections={most}; the figures are "
        "then no longer COCO's AP"
    )


def unlike_themselves(
    data: CocoData, read: Sequence[ImageRecord], results: Sequence[dict[str, Any]], kind: str
) -> list[int]:
    """Objects that do not match themselves after the round trip.

    Args:
        data: the split.
        read: the images, with as many objects as there are results.
        results: their objects as results, in the same order.
        kind: "bbox" or "segm".

    Returns:
        Indices of the results whose IoU with their object is below the highest threshold of AP.
    """
    lost, start = [], 0
    for record in read:
        for i in range(len(record.boxes)):
            result = results[start + i]
            if kind == "bbox":
                x1, y1, x2, y2 = record.boxes[i].tolist()
                overlap = coco.iou([result["bbox"]], [[x1, y1, x2 - x1, y2 - y1]], [0])
            else:
                overlap = coco.iou([result["segmentation"]], [_rle(record.segmentations[i], record.size)], [0])
            if not float(np.ravel(overlap)[0]) >= MATCHING_IOU:
                lost.append(start + i)
        start += len(record.boxes)
    return lost


def moved_px(target: Targets, record: ImageRecord, network: ImageSize) -> float:
    """How far outlines are from where they were, after a resize to network scale and back.

    Args:
        target: the objects at network scale, all of the record's.
        record: the image.
        network: its size at network scale.

    Returns:
        The largest distance of a vertex, pixels of the image; for bitmaps, that of an edge beyond one pixel of the
        resized image.
    """
    x, y = network.width / record.size.width, network.height / record.size.height
    if isinstance(target.masks, PolygonMasks):
        back = target.masks.scaled(1 / x, 1 / y).polygons
        pairs = [(a, b) for mine, theirs in zip(back, record.segmentations) for a, b in zip(mine, theirs, strict=True)]
        return max((float(np.abs(a - b).max()) for a, b in pairs), default=0.0)
    assert isinstance(target.masks, BitMasks)
    far = 0.0
    for bits, outline in zip(target.masks.bits.numpy(), record.segmentations):
        rows, columns = np.flatnonzero(bits.any(axis=1)), np.flatnonzero(bits.any(axis=0))
        if not len(rows):  # smaller than a pixel of the resized image
            continue
        left, top, width, height = _box(outline, record.size)
        edges = np.array([columns[0] / x, rows[0] / y, (columns[-1] + 1) / x, (rows[-1] + 1) / y])
        away = np.abs(edges - [left, top, left + width, top + height]) - np.array([1 / x, 1 / y] * 2)
        far = max(far, float((away - 1).max()))
    return max(far, 0.0)


def _box(outline: Any, size: ImageSize) -> list[float]:
    box: list[float] = coco.toBbox(_rle(outline, size)).tolist()
    return box


def _rle(outline: Any, size: ImageSize) -> Any:
    """An outline of a record as compressed run lengths."""
    # not at the top: albumentations takes half a second to import, and `--help` does not need it
    from tools.data.augment import coco_form

    rles = coco.frPyObjects(coco_form(outline), size.height, size.width)
    return coco.merge(rles) if isinstance(rles, list) else rles
