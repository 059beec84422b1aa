"""Ground truth in COCO's format, with the fields that scoring needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from resnet_backbone.errors import InvalidValue, MissingFile


def load_ground_truth(ground_truth: Path | str | Mapping[str, Any]) -> dict[str, Any]:
    """Read ground truth and add missing fields to its annotations.

    Args:
        ground_truth: COCO instances file, or its content, which is not changed.

    Returns:
        A copy with "info", "images", "categories" and "annotations". Each annotation has `bbox`, `area`, `iscrowd` and
        a new, unique `id`. Annotations of images that are not listed are left out.

    Raises:
        MissingFile: the file does not exist.
        InvalidValue: the file is not JSON, a list is missing, there are no images or no categories, category names
            repeat, or an annotation has an unknown category, or neither box nor segmentation.
    """
    content = ground_truth if isinstance(ground_truth, Mapping) else _read(Path(ground_truth))
    for key in ("images", "categories", "annotations"):
        if key not in content:
            raise InvalidValue(f"the ground truth has {sorted(content)}, but no {key!r}: give a COCO instances file")
    if not content["images"] or not content["categories"]:
        raise InvalidValue("the ground truth has no images or no categories: give a COCO instances file with both")
    _check_unique([category["name"] for category in content["categories"]])
    images = {image["id"]: image for image in content["images"]}
    category_ids = {category["id"] for category in content["categories"]}
    annotations: list[dict[str, Any]] = []
    for annotation in content["annotations"]:
        if annotation["category_id"] not in category_ids:
            raise InvalidValue(
                f"annotation {annotation.get('id')} has category_id {annotation['category_id']}, which is "
                "not among the ground truth's categories: add the category or remove the annotation"
            )
        # a file may list some images of a larger set, with all its annotations: only listed images are scored
        if annotation["image_id"] in images:
            annotations.append(_completed(annotation, images[annotation["image_id"]], len(annotations) + 1))
    return {
        "info": content.get("info", {}),
        "images": list(content["images"]),
        "categories": list(content["categories"]),
        "annotations": annotations,
    }


def to_rle(segmentation: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a segmentation to a compressed RLE.

    Args:
        segmentation: polygons, or an RLE, compressed or not.
        image: COCO's record of the image; polygons need its "height" and "width".

    Returns:
        COCO's compressed RLE, {"size": [height, width], "counts": ...}.

    Raises:
        InvalidValue: the segmentation is polygons and the image has no size.
    """
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            rle: dict[str, Any] = coco_mask.frPyObjects(segmentation, *segmentation["size"])
            return rle
        return dict(segmentation)
    for side in ("height", "width"):
        if side not in image:
            raise InvalidValue(f"image {image['id']} has no {side!r}, which polygons need: add it to the ground truth")
    parts = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
    merged: dict[str, Any] = coco_mask.merge(parts)
    return merged


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise MissingFile(f"no ground truth at {path}: check the path")
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidValue(f"{path} is not complete JSON ({error}): give a COCO instances file") from error
    return content


def _completed(annotation: Mapping[str, Any], image: Mapping[str, Any], new_id: int) -> dict[str, Any]:
    # a new id: COCOeval takes a match with id 0 for no match, and annotations with equal ids for one
    completed = {**annotation, "id": new_id, "iscrowd": int(annotation.get("iscrowd", 0))}
    segmentation = completed.get("segmentation")
    if "bbox" not in completed:
        if not segmentation:
            raise InvalidValue(
                f"annotation {annotation.get('id')} of image {image['id']} has neither bbox nor "
                "segmentation: add one of them or remove the annotation"
            )
        completed["bbox"] = coco_mask.toBbox(to_rle(segmentation, image)).tolist()
    if "area" not in completed:
        if segmentation:
            completed["area"] = float(coco_mask.area(to_rle(segmentation, image)))
        else:
            completed["area"] = float(completed["bbox"][2]) * float(completed["bbox"][3])
    return completed


def _check_unique(names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InvalidValue(
            f"the ground truth has categories named {repeated[:5]} more than once, but scores are listed by name: "
            "give each category a unique name"
        )
