"""Ground truth as COCO-eval takes it, from a table of annotations, a file or its content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from resnet_backbone.errors import InvalidValue
from tools.annotations.reader import read_annotations
from tools.annotations.table import AnnotationTable

GroundTruth = AnnotationTable | Path | str | Mapping[str, Any]


def load_ground_truth(ground_truth: GroundTruth, *, segmentations: bool = True) -> dict[str, Any]:
    """Take ground truth, with the fields that scoring needs.

    Args:
        ground_truth: annotations that were read, a COCO instances file, or its content, which is not changed. A file
            is read and checked as for training.
        segmentations: whether to add the outlines.

    Returns:
        COCO's "images", "categories" and "annotations". Each annotation has `bbox`, `area`, `iscrowd` and a new, unique
        `id`; crowds without an outline have the outline of their box.

    Raises:
        MissingFile: the file does not exist.
        BadAnnotations: as for `read_annotations`.
    """
    table = ground_truth if isinstance(ground_truth, AnnotationTable) else read_annotations(ground_truth)
    content = table.to_coco(segmentations=segmentations)
    for annotation in content["annotations"] if segmentations else ():
        if annotation["iscrowd"] and "segmentation" not in annotation:
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return content


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
        if not image.get(side):
            raise InvalidValue(f"image {image['id']} has no {side!r}, which polygons need: add it to the ground truth")
    parts = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
    merged: dict[str, Any] = coco_mask.merge(parts)
    return merged
