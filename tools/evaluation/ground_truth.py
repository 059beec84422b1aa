"""Ground truth in COCO's format, completed so that scoring never meets a missing field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from resnet_backbone.errors import InvalidValue


def load_truth(source: Path | str | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the ground truth whose annotations all have `area`, `bbox`, `iscrowd` and their own `id`."""
    if isinstance(source, Mapping):
        given: Mapping[str, Any] = source
    else:
        given = json.loads(Path(source).read_text(encoding="utf-8"))
    for field in ("images", "categories", "annotations"):
        if field not in given:
            raise InvalidValue(
                f"the ground truth has {sorted(given)}, wanted {field!r} too: give a COCO instances file"
            )
    if not given["images"] or not given["categories"]:
        raise InvalidValue("the ground truth has no images or no categories: nothing to score against; check the file")
    _refuse_twin_names([category["name"] for category in given["categories"]])
    images = {image["id"]: image for image in given["images"]}
    categories = {category["id"] for category in given["categories"]}
    annotations: list[dict[str, Any]] = []
    for annotation in given["annotations"]:
        if annotation["category_id"] not in categories:
            raise InvalidValue(
                f"annotation {annotation.get('id')} has category_id {annotation['category_id']}, which is "
                "not among the ground truth's categories: add the category or drop the annotation"
            )
        # annotations of images that are not listed belong to a cut of a larger set, and are not scored
        if annotation["image_id"] in images:
            annotations.append(_complete(annotation, images[annotation["image_id"]], len(annotations) + 1))
    return {
        "info": given.get("info", {}),
        "images": list(given["images"]),
        "categories": list(given["categories"]),
        "annotations": annotations,
    }


def to_rle(segmentation: Any, image: Mapping[str, Any]) -> dict[str, Any]:
    """Polygons, or runs compressed or not, as compressed runs of the image's size."""
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            rle: dict[str, Any] = coco_mask.frPyObjects(segmentation, *segmentation["size"])
            return rle
        return dict(segmentation)
    for side in ("height", "width"):
        if side not in image:
            raise InvalidValue(f"image {image['id']} has no {side!r}, polygons need one: add it to the ground truth")
    parts = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
    merged: dict[str, Any] = coco_mask.merge(parts)
    return merged


def _complete(annotation: Mapping[str, Any], image: Mapping[str, Any], number: int) -> dict[str, Any]:
    # a new id: COCOeval reads a match with id 0 as no match, and twin ids as one annotation
    full = {**annotation, "id": number, "iscrowd": int(annotation.get("iscrowd", 0))}
    segmentation = full.get("segmentation")
    if "bbox" not in full:
        if not segmentation:
            raise InvalidValue(
                f"annotation {annotation.get('id')} of image {image['id']} has neither bbox nor "
                "segmentation: give it one or drop it"
            )
        full["bbox"] = coco_mask.toBbox(to_rle(segmentation, image)).tolist()
    if "area" not in full:
        if segmentation:
            full["area"] = float(coco_mask.area(to_rle(segmentation, image)))
        else:
            full["area"] = float(full["bbox"][2]) * float(full["bbox"][3])
    return full


def _refuse_twin_names(names: list[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise InvalidValue(
            f"the ground truth names the categories {twins[:5]} more than once, which scores by category "
            "would mix up: give each a name of its own"
        )
