"""COCO-format folders of any categories: the door where category ids become labels 0..K-1.

Glossary: R objects of one image, K categories (sorted by id, so that a label's meaning does not depend on the file's
order). What is dropped on the way in is counted by reason, never lost silently.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from heads.structures import ImageSize
from resnet_backbone.errors import MissingFile, UserError

NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


class BadAnnotations(UserError, ValueError):
    """An annotation file that cannot be used; the message says where and what to mend."""


@dataclass(frozen=True)
class ImageRecord:
    """One image: boxes (R, 4) float64 xyxy clipped to the image, labels (R,) int64, segmentations R of COCO's own
    form (polygons or RLE). Crowds are not among them."""

    image_id: int
    path: Path
    size: ImageSize
    boxes: np.ndarray
    labels: np.ndarray
    segmentations: tuple[Any, ...]
    crowds: int


@dataclass(frozen=True)
class CocoData:
    """The images of a split, sorted by id; label l is category_ids[l] and class_names[l]."""

    records: tuple[ImageRecord, ...]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    dropped: Mapping[str, int]

    def summary(self) -> dict[str, Any]:
        """Counts for people, before training: images, boxes, categories, sizes, and what was dropped."""
        labels = np.concatenate([r.labels for r in self.records] or [np.zeros(0, int)])
        areas = [float((b[2] - b[0]) * (b[3] - b[1])) for r in self.records for b in r.boxes]
        sizes = sorted((r.size.width * r.size.height, f"{r.size.width}x{r.size.height}") for r in self.records)
        counts = np.bincount(labels, minlength=len(self.class_names))
        return {
            "images": len(self.records),
            "images_without_boxes": sum(len(r.boxes) == 0 for r in self.records),
            "boxes": len(labels),
            "crowds": sum(r.crowds for r in self.records),
            "dropped": dict(self.dropped),
            "box_sizes": {
                "small": sum(a < 32**2 for a in areas),
                "medium": sum(32**2 <= a < 96**2 for a in areas),
                "large": sum(a >= 96**2 for a in areas),
            },
            "categories": {name: int(count) for name, count in zip(self.class_names, counts)},
            "image_sizes": {
                "min": sizes[0][1],
                "median": sizes[len(sizes) // 2][1],
                "max": sizes[-1][1],
            },
        }


def load_coco(
    images: Path,
    annotations: Path,
    *,
    masks: bool = False,
    min_box_px: float = 0.0,
    keep_empty: bool = True,
    skip_missing: bool = False,
) -> CocoData:
    """Read a split. Crowds are kept out; boxes are clipped to their image, and dropped with a count where a side is
    not larger than min_box_px, where they are not finite, or (masks) where no outline is left to learn from.

    keep_empty: keep images without boxes. skip_missing: leave out images whose file is missing instead of raising.
    Raises FileNotFoundError, `BadAnnotations`.
    """
    content = _read(annotations)
    if not images.is_dir():
        raise MissingFile(f"no image folder at {images}: check data.*.images")
    categories = sorted(content["categories"], key=lambda c: c["id"])
    ids = [c["id"] for c in categories]
    for part, numbers in (("category", ids), ("image", [image["id"] for image in content["images"]])):
        if repeated := [i for i, n in Counter(numbers).items() if n > 1]:
            raise BadAnnotations(f"{annotations}: {part} ids repeat: {repeated[:5]}: give each {part} an id of its own")
    label_of = {category_id: label for label, category_id in enumerate(ids)}
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    known = {image["id"] for image in content["images"]}
    for annotation in content["annotations"]:
        if annotation["image_id"] not in known or annotation["category_id"] not in label_of:
            raise BadAnnotations(
                f"{annotations}: annotation {annotation.get('id')} names image {annotation['image_id']} and category "
                f"{annotation['category_id']}, one of which the file does not list: add it or remove the annotation"
            )
        by_image[annotation["image_id"]].append(annotation)
    dropped: Counter[str] = Counter()
    records = []
    for image in sorted(content["images"], key=lambda i: i["id"]):
        path = images / image["file_name"]
        if not path.is_file():
            if not skip_missing:
                raise MissingFile(
                    f"{annotations.name} lists {path}, which is missing: add it, or set data.on_bad_image: skip"
                )
            dropped["image file missing"] += 1
            continue
        record = _record(image, path, by_image[image["id"]], label_of, masks, min_box_px, dropped)
        if len(record.boxes) or keep_empty:
            records.append(record)
        else:
            dropped["image without boxes"] += 1
    if not records:
        raise BadAnnotations(f"{annotations}: no image is left to use (dropped: {dict(dropped)})")
    return CocoData(tuple(records), tuple(ids), tuple(str(c["name"]) for c in categories), dict(dropped))


def restrict(data: CocoData, *, objects: tuple[int, int] | None, max_images: int | None) -> CocoData:
    """Only images with objects[0] to objects[1] objects, and only the first max_images of them by id.

    Raises `BadAnnotations` where none is left.
    """
    low, high = objects or (0, max((len(r.boxes) for r in data.records), default=0))
    records = [r for r in data.records if low <= len(r.boxes) <= high][:max_images]
    if not records:
        raise BadAnnotations(f"no image has {low} to {high} objects: widen data.*.objects")
    return replace(data, records=tuple(records))


def _read(annotations: Path) -> dict[str, Any]:
    if not annotations.is_file():
        raise MissingFile(f"no annotations at {annotations}: check data.*.annotations")
    try:
        content = json.loads(annotations.read_text())
    except json.JSONDecodeError as error:
        raise BadAnnotations(f"{annotations} is not whole JSON ({error}): copy or download it again") from error
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(content, dict) or key not in content
    ]
    if missing:
        raise BadAnnotations(f"{annotations} lacks {missing}: it must be a COCO instances file")
    for part, keys in NEEDED.items():
        for entry in content[part]:
            if lacking := [key for key in keys if entry.get(key) is None]:
                raise BadAnnotations(f"{annotations}: an entry of {part} lacks {lacking}: {str(entry)[:100]}")
    return content


def _record(
    image: Mapping[str, Any],
    path: Path,
    annotations: Sequence[Mapping[str, Any]],
    label_of: Mapping[int, int],
    masks: bool,
    min_box_px: float,
    dropped: Counter[str],
) -> ImageRecord:
    size = ImageSize(height=int(image["height"]), width=int(image["width"]))
    boxes, labels, segmentations, crowds = [], [], [], 0
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            crowds += 1
            continue
        x, y, w, h = (float(v) for v in annotation["bbox"])
        corners = np.array([x, y, x + w, y + h])
        finite = np.isfinite(corners).all()  # asked before clipping, which would make an infinity a side of the image
        corners[0::2] = corners[0::2].clip(0, size.width)
        corners[1::2] = corners[1::2].clip(0, size.height)
        outline = _usable(annotation.get("segmentation"))
        if not finite:
            dropped["box not finite"] += 1
        elif (corners[2:] - corners[:2]).min() <= min_box_px:
            dropped[f"box side of {min_box_px:g} px or less"] += 1
        elif masks and outline is None:
            dropped["object without an outline"] += 1
        else:
            boxes.append(corners)
            labels.append(label_of[annotation["category_id"]])
            segmentations.append(outline)
    return ImageRecord(
        image_id=int(image["id"]),
        path=path,
        size=size,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        segmentations=tuple(segmentations),
        crowds=crowds,
    )


def _usable(segmentation: Any) -> Any:
    """RLE as it is, polygons of three vertices and more, None where nothing is left."""
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return segmentation
    if isinstance(segmentation, list):
        return [flat for flat in segmentation if len(flat) >= 6 and len(flat) % 2 == 0] or None
    return None
