from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tools.evaluation.ground_truth import load_truth, to_rle

SQUARE = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]


def truth(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "height": 40, "width": 50}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 3, **annotation} for annotation in annotations],
    }


def test_missing_fields_are_filled_and_the_source_is_not_touched() -> None:
    given = truth({"bbox": [1, 2, 3, 4]}, {"segmentation": SQUARE}, {"bbox": [10, 10, 10, 10], "segmentation": SQUARE})
    before = copy.deepcopy(given)
    first, second, third = load_truth(given)["annotations"]
    assert given == before
    assert (first["area"], first["iscrowd"]) == (12.0, 0)
    assert second["bbox"] == [10.0, 10.0, 10.0, 10.0]
    assert second["area"] == third["area"] == 100.0


def test_given_fields_are_kept() -> None:
    kept = {"bbox": [1, 2, 3, 4], "area": 7.5, "iscrowd": 1}
    (annotation,) = load_truth(truth(kept))["annotations"]
    assert kept.items() <= annotation.items()


def test_ids_that_would_confuse_cocoeval_are_replaced() -> None:
    twins = load_truth(truth({"id": 0, "bbox": [1, 2, 3, 4]}, {"id": 0, "bbox": [1, 2, 3, 4]}))["annotations"]
    assert [annotation["id"] for annotation in twins] == [1, 2]


@pytest.mark.parametrize("field", ["images", "categories", "annotations"])
def test_a_missing_list_is_named(field: str) -> None:
    given = truth()
    del given[field]
    with pytest.raises(ValueError, match=f"wanted '{field}' too"):
        load_truth(given)


def test_twin_category_names_are_refused() -> None:
    given = truth()
    given["categories"].append({"id": 4, "name": "cat"})
    with pytest.raises(ValueError, match=r"\['cat'\] more than once"):
        load_truth(given)


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(ValueError, match="category_id 9"):
        load_truth(truth({"category_id": 9, "bbox": [1, 2, 3, 4]}))


def test_an_annotation_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="neither bbox nor segmentation"):
        load_truth(truth({"id": 77}))


def test_polygons_and_runs_of_either_kind_mean_the_same_mask() -> None:
    image = {"id": 1, "height": 40, "width": 50}
    from_polygons = to_rle(SQUARE, image)
    bits = coco_mask.decode(from_polygons)
    # COCO's uncompressed runs go down the columns and begin with zeros
    flat = bits.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    from_counts = to_rle({"size": [40, 50], "counts": counts}, image)
    assert from_counts == from_polygons == to_rle(from_polygons, image)


def test_polygons_need_the_images_size() -> None:
    with pytest.raises(ValueError, match="image 1 has no 'height'"):
        to_rle(SQUARE, {"id": 1, "width": 50})
