"""Data sets in COCO's format, with any categories. Category ids become labels 0..K-1 here.

Glossary: R objects of one image, K categories. Labels follow the sorted category ids, so that they do not depend on the
order of the file. Everything that is dropped is counted by reason.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from heads.structures import ImageSize
from resnet_backbone.errors import MissingFile, UserError

REQUIRED_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


class BadAnnotations(UserError, ValueError):
    """An annotation file that cannot be used. The message says where the mistake is and how to fix it."""


@dataclass(frozen=True)
class ImageRecord:
    """One image with its R objects; crowds are not among them.

    Attributes:
        image_id: COCO's image id.
        path: image file.
        size: size in the annotation file; the upright image must have it.
        boxes: (R, 4) float64 xyxy, pixels, clipped to the image.
        labels: (R,) int64, 0..K-1.
        segmentations: R segmentations as in the file (polygons or RLE); None for an object without one, which only
            data read without masks can have.
        crowds: number of crowd annotations left out.
    """

    image_id: int
    path: Path
    size: ImageSize
    boxes: np.ndarray
    labels: np.ndarray
    segmentations: tuple[Any, ...]
    crowds: int


@dataclass(frozen=True)
class CocoData:
    """A split of a data set.

    Attributes:
        records: images, sorted by id.
        category_ids: K ids; label l is the category `category_ids[l]`.
        class_names: K names, in the order of the labels.
        dropped: number of dropped images and annotations, by reason.
    """

    records: tuple[ImageRecord, ...]
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    dropped: Mapping[str, int]

    def summary(self) -> dict[str, Any]:
        """Count images, boxes, categories and dropped annotations, to print before training.

        Returns:
            Counts "images", "images_without_boxes", "boxes" and "crowds"; "dropped" {reason: count}; "box_sizes"
            {"small", "medium", "large": count}, by COCO's areas of 32^2 and 96^2 px; "categories" {name: count};
            "image_sizes" {"min", "median", "max": "WxH"}, by area.
        """
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
    """Read a split. Boxes are clipped to their image; crowds are left out.

    Args:
        images: folder of the images.
        annotations: COCO instances file.
        masks: drop objects without a usable segmentation.
        min_box_px: drop boxes with a side of this length or less, pixels. Boxes that are not finite are always dropped.
        keep_empty: keep images without boxes.
        skip_missing: drop images without a file instead of raising `MissingFile`.

    Returns:
        The images, sorted by id, with the counts of what was dropped.

    Raises:
        MissingFile: the annotation file, the folder or an image does not exist.
        BadAnnotations: the annotation file is not valid, or no image is left.
    """
    content = _read(annotations)
    if not images.is_dir():
        raise MissingFile(f"no image folder at {images}: check data.*.images")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    category_ids = [category["id"] for category in categories]
    _check_unique(annotations, "category", category_ids)
    _check_unique(annotations, "image", (image["id"] for image in content["images"]))
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    by_image = _group_by_image(annotations, content, label_of)
    dropped: Counter[str] = Counter()
    records = []
    for image, path in _existing_images(annotations, images, content, skip_missing, dropped):
        record = _record(image, path, by_image[image["id"]], label_of, masks, min_box_px, dropped)
        if len(record.boxes) or keep_empty:
            records.append(record)
        else:
            dropped["image without boxes"] += 1
    if not records:
        raise BadAnnotations(
            f"{annotations}: no image is left to use (dropped: {dict(dropped)}): correct the annotations or the paths, "
            "or keep images without boxes (data.empty_images: keep)"
        )
    class_names = tuple(str(category["name"]) for category in categories)
    return CocoData(tuple(records), tuple(category_ids), class_names, dict(dropped))


def restrict(data: CocoData, *, objects: tuple[int, int] | None, max_images: int | None) -> CocoData:
    """Select images by their number of objects, then the first ones by id.

    Args:
        data: a split.
        objects: smallest and largest number of objects; None for any number.
        max_images: maximum number of images; None for all.

    Returns:
        A copy with the selected images.

    Raises:
        BadAnnotations: no image has such a number of objects.
    """
    low, high = objects or (0, max((len(r.boxes) for r in data.records), default=0))
    records = [r for r in data.records if low <= len(r.boxes) <= high][:max_images]
    if not records:
        raise BadAnnotations(f"no image has {low} to {high} objects: widen data.*.objects")
    return replace(data, records=tuple(records))


def _read(annotations: Path) -> dict[str, Any]:
    """Read an annotation file and check that its entries have the required keys."""
    if not annotations.is_file():
        raise MissingFile(f"no annotations at {annotations}: check data.*.annotations")
    try:
        content = json.loads(annotations.read_text())
    except json.JSONDecodeError as error:
        raise BadAnnotations(
            f"{annotations} is not complete JSON ({error}): copy it or download it again, or give a COCO instances file"
        ) from error
    missing_parts = [part for part in REQUIRED_KEYS if not isinstance(content, dict) or part not in content]
    if missing_parts:
        raise BadAnnotations(f"{annotations} lacks {missing_parts}: give a COCO instances file")
    for part, keys in REQUIRED_KEYS.items():
        for entry in content[part]:
            if missing_keys := [key for key in keys if entry.get(key) is None]:
                raise BadAnnotations(
                    f"{annotations}: an entry of {part} lacks {missing_keys}: add them to {str(entry)[:100]}"
                )
    return content


def _check_unique(annotations: Path, part: str, ids: Iterable[int]) -> None:
    if repeated := [i for i, count in Counter(ids).items() if count > 1]:
        raise BadAnnotations(f"{annotations}: {part} ids repeat: {repeated[:5]}: give each {part} a unique id")


def _group_by_image(
    annotations: Path, content: Mapping[str, Any], label_of: Mapping[int, int]
) -> dict[int, list[Mapping[str, Any]]]:
    """Annotations by image id; raises if an annotation refers to an image or a category that is not listed."""
    image_ids = {image["id"] for image in content["images"]}
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in image_ids or category_id not in label_of:
            raise BadAnnotations(
                f"{annotations}: annotation {annotation.get('id')} refers to image {image_id} and category "
                f"{category_id}, but the file does not list both: add the missing one or remove the annotation"
            )
        by_image[image_id].append(annotation)
    return by_image


def _existing_images(
    annotations: Path, images: Path, content: Mapping[str, Any], skip_missing: bool, dropped: Counter[str]
) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """Images by id, with their files; counts missing files in `dropped` or raises."""
    for image in sorted(content["images"], key=lambda image: image["id"]):
        path = images / image["file_name"]
        if path.is_file():
            yield image, path
        elif skip_missing:
            dropped["image file missing"] += 1
        else:
            raise MissingFile(
                f"{annotations.name} lists {path}, which is missing: add it, or set data.on_bad_image: skip"
            )


def _record(
    image: Mapping[str, Any],
    path: Path,
    annotations: Sequence[Mapping[str, Any]],
    label_of: Mapping[int, int],
    masks: bool,
    min_box_px: float,
    dropped: Counter[str],
) -> ImageRecord:
    """One image's record; counts what it drops in `dropped`."""
    size = ImageSize(height=int(image["height"]), width=int(image["width"]))
    boxes, labels, segmentations, crowds = [], [], [], 0
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            crowds += 1
            continue
        x, y, w, h = (float(v) for v in annotation["bbox"])
        corners = np.array([x, y, x + w, y + h])
        is_finite = np.isfinite(corners).all()  # before clipping, which moves infinite corners to the image's edges
        corners[0::2] = corners[0::2].clip(0, size.width)
        corners[1::2] = corners[1::2].clip(0, size.height)
        segmentation = _usable(annotation.get("segmentation"))
        if not is_finite:
            dropped["box not finite"] += 1
        elif (corners[2:] - corners[:2]).min() <= min_box_px:
            dropped[f"box side of {min_box_px:g} px or less"] += 1
        elif masks and segmentation is None:
            dropped["object without an outline"] += 1
        else:
            boxes.append(corners)
            labels.append(label_of[annotation["category_id"]])
            segmentations.append(segmentation)
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
    """An RLE unchanged; polygons without those of fewer than three vertices; None if nothing is left."""
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return segmentation
    if isinstance(segmentation, list):
        return [flat for flat in segmentation if len(flat) >= 6 and len(flat) % 2 == 0] or None
    return None
