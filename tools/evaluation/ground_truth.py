"""Ground truth to score with, from a table of annotations, a file or its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.errors import InvalidValue
from tools.annotations.reader import read_annotations
from tools.annotations.table import NO_OUTLINE, AnnotationTable

from .interface import Objects

GroundTruth = AnnotationTable | Path | str | Mapping[str, Any]
AREAS_AT_ONCE = 255  # pycocotools puts the number of masks into an uint8


def load_ground_truth(ground_truth: GroundTruth) -> AnnotationTable:
    """Take ground truth.

    Args:
        ground_truth: annotations that were read, a COCO instances file, or its content, which is not changed. A file
            is read and checked as for training.

    Returns:
        The annotations.

    Raises:
        MissingFile: the file does not exist.
        BadAnnotations: as for `read_annotations`.
    """
    return ground_truth if isinstance(ground_truth, AnnotationTable) else read_annotations(ground_truth)


def box_objects(table: AnnotationTable) -> Objects:
    """The objects of a table, to score boxes.

    Args:
        table: the annotations.

    Returns:
        The used objects, image by image; images are numbered as in `table.image_ids`, categories as the labels.
    """
    rows = table.rows
    columns = (table.labels[rows], table.boxes[rows], table.areas[rows], table.crowd[rows], np.ones(len(rows)))
    return Objects(table.images_of_rows(), *columns)


def mask_objects(table: AnnotationTable, images: np.ndarray) -> Objects:
    """The objects of some images, to score masks. Crowds without an outline have the outline of their box.

    Args:
        table: the annotations.
        images: indices of the images.

    Returns:
        The used objects of these images, as for `box_objects`.

    Raises:
        InvalidValue: an object that is no crowd has no outline, or an image with polygons has no size.
    """
    kept = np.flatnonzero(np.isin(table.images_of_rows(), images))
    boxes = box_objects(table).of_images(images)
    masks = []
    for row, image in zip(table.rows[kept].tolist(), boxes.images.tolist()):
        mask = table.segmentation(row, image) if table.outlines.kinds[row] != NO_OUTLINE else None
        if not mask and table.crowd[row]:
            x, y, w, h = table.boxes[row].tolist()
            mask = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if not mask:
            raise InvalidValue(
                f"an annotation of image {table.image_ids[image]}, bbox {table.boxes[row].tolist()}, has no "
                "segmentation, which 'segm' needs: add it, or score kinds=('bbox',)"
            )
        if isinstance(mask, list):
            _check_size(table, image)
        masks.append(mask)
    return Objects(boxes.images, boxes.categories, boxes.boxes, boxes.areas, boxes.crowd, boxes.scores, masks)


def _check_size(table: AnnotationTable, image: int) -> None:
    """COCOeval would draw the polygons of an image without a size as empty masks."""
    if not table.sizes[image].all():
        raise InvalidValue(
            f"image {table.image_ids[image]} has no 'height' and 'width', which polygons need: add both to the ground "
            "truth"
        )


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
    from pycocotools import mask as coco_mask  # not at the top: `--help` does not need it

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


def mask_areas(masks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The areas of masks.

    Args:
        masks: R compressed RLEs.

    Returns:
        (R,) float64, square pixels.
    """
    from pycocotools import mask as coco_mask  # not at the top: `--help` does not need it

    starts = range(0, len(masks), AREAS_AT_ONCE)
    parts = [coco_mask.area(list(masks[start : start + AREAS_AT_ONCE])) for start in starts]
    return np.concatenate([np.zeros(0), *parts])
