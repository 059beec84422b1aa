"""COCO results as columns, with checks. The checks look at all results at once; only a failure looks at each.

Glossary: R results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np

from resnet_backbone.errors import InvalidValue
from tools.annotations.table import AnnotationTable, Id

from .ground_truth import mask_areas, to_rle
from .interface import Objects

Results = Sequence[Mapping[str, Any]]


def result_columns(table: AnnotationTable, results: Results) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What every result has.

    Args:
        table: the ground truth.
        results: R results.

    Returns:
        Indices of the images, (R,) int64, labels, (R,) int64, and scores, (R,) float64.

    Raises:
        InvalidValue: a result lacks a field, its score is not finite, or the ground truth lacks its image or category.
    """
    try:
        image_ids = [result["image_id"] for result in results]
        category_ids = [result["category_id"] for result in results]
        scores = np.array([result["score"] for result in results] or np.zeros(0))
    except (KeyError, ValueError):
        scores = np.array("one lacks a field")
    if scores.ndim != 1 or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        _refuse_result(results)
    images = _indices("image ids of the results", image_ids, table.image_ids)
    return images, _indices("category ids of the results", category_ids, table.category_ids), scores.astype(np.float64)


def box_detections(columns: tuple[np.ndarray, np.ndarray, np.ndarray], results: Results) -> Objects:
    """Detections, to score boxes.

    Args:
        columns: what `result_columns` returned.
        results: R results with "bbox".

    Returns:
        The detections; their areas are those of the boxes.

    Raises:
        InvalidValue: a result has no box of four finite numbers.
    """
    images, labels, scores = columns
    boxes = [result.get("bbox") for result in results]
    try:
        is_whole = set(map(len, boxes)) <= {4}  # type: ignore[arg-type]  # None has no length
        flat = np.array(list(chain.from_iterable(boxes)) or np.zeros(0))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        is_whole, flat = False, np.zeros(0)
    if not is_whole or flat.dtype.kind not in "fiu" or not np.isfinite(flat).all():
        for number in (i for i, box in enumerate(boxes) if not _is_box(box)):
            raise InvalidValue(
                f"result {number} (image {results[number]['image_id']}) has bbox {boxes[number]}: give finite "
                "[x, y, width, height]"
            )
    columns_of_boxes = flat.astype(np.float64).reshape(-1, 4)
    areas = columns_of_boxes[:, 2] * columns_of_boxes[:, 3]
    return Objects(images, labels, columns_of_boxes, areas, np.zeros(len(images), bool), scores)


def mask_detections(
    columns: tuple[np.ndarray, np.ndarray, np.ndarray], results: Results, table: AnnotationTable
) -> Objects:
    """Detections, to score masks.

    Args:
        columns: what `result_columns` returned.
        results: R results with "segmentation", an RLE.
        table: the ground truth.

    Returns:
        The detections. Their areas are those of the masks: COCO.loadRes would take the area of the box if there is one.

    Raises:
        InvalidValue: a result has no RLE, or one of another size than its image.
    """
    images, labels, scores = columns
    masks: list[Any] = [result.get("segmentation") for result in results]
    if not all(issubclass(kind, Mapping) for kind in set(map(type, masks))):
        number = next(i for i, mask in enumerate(masks) if not isinstance(mask, Mapping))
        raise InvalidValue(
            f"result {number} (image {results[number]['image_id']}) has no segmentation as RLE, which 'segm' needs: "
            "write results with masks, or score kinds=('bbox',)"
        )
    sizes, expected = [mask["size"] for mask in masks], table.sizes[images]
    if set(map(len, sizes)) - {2}:
        differ = np.array([len(size) != 2 for size in sizes])
    else:
        differ = (np.fromiter(chain.from_iterable(sizes), np.float64).reshape(-1, 2) != expected).any(axis=1)
    for number in np.flatnonzero(differ).tolist():
        raise InvalidValue(  # COCOeval would silently count it as a false positive
            f"result {number} has a mask of [height, width] {list(sizes[number])}, image "
            f"{results[number]['image_id']} is {expected[number].tolist()}: paste masks into the image before writing "
            "results"
        )
    if list in set(map(type, [mask["counts"] for mask in masks])):
        masks = [to_rle(mask, {}) for mask in masks]
    return Objects(
        images, labels, np.zeros((len(images), 4)), mask_areas(masks), np.zeros(len(images), bool), scores, masks
    )


def check_known(what: str, unknown_ids: set[Id]) -> None:
    """Check that the ground truth has all ids.

    Args:
        what: the ids, for the message.
        unknown_ids: those that it lacks.

    Raises:
        InvalidValue: there are such ids.
    """
    if unknown_ids:
        raise InvalidValue(
            f"{what}: {sorted(unknown_ids, key=str)[:5]} are not in the ground truth ({len(unknown_ids)} in all): "
            "use the data set that the results were made on"
        )


def _indices(what: str, ids: Iterable[Id], known: Sequence[Id]) -> np.ndarray:
    """The positions of ids in the ground truth."""
    ids = list(ids)
    positions = {known_id: index for index, known_id in enumerate(known)}
    check_known(what, set(ids) - positions.keys())
    return np.fromiter(map(positions.__getitem__, ids), np.int64, len(ids))


def _refuse_result(results: Results) -> None:
    """Name the first result without a finite score, or another field."""
    for number, result in enumerate(results):
        missing = {"image_id", "category_id", "score"} - result.keys()
        if missing or not _is_finite(result["score"]):
            raise InvalidValue(
                f"result {number} lacks {sorted(missing) or 'a finite score'}: give results in COCO's format"
            )


def _is_box(box: Any) -> bool:
    return isinstance(box, Sequence | np.ndarray) and len(box) == 4 and all(map(_is_finite, box))


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
