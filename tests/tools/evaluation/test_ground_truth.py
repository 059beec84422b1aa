"""Ground truth is completed without changing its source, and wrong files give clear errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from resnet_backbone.errors import MissingFile
from tools.annotations.findings import BadAnnotations
from tools.evaluation.ground_truth import load_ground_truth, to_rle

SQUARE = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]


def make_content(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "height": 40, "width": 50}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 3, **annotation} for annotation in annotations],
    }


def test_missing_fields_are_filled_and_the_source_is_not_changed() -> None:
    content = make_content(
        {"bbox": [1, 2, 3, 4]}, {"segmentation": SQUARE}, {"bbox": [10, 10, 10, 10], "segmentation": SQUARE}
    )
    before = copy.deepcopy(content)
    first, second, third = load_ground_truth(content)["annotations"]
    assert content == before
    assert (first["area"], first["iscrowd"]) == (12.0, 0)
    assert second["bbox"] == [10.0, 10.0, 10.0, 10.0]
    assert second["area"] == third["area"] == 100.0


def test_existing_fields_are_kept() -> None:
    fields = {"bbox": [1, 2, 3, 4], "area": 7.5, "iscrowd": 1}
    annotation, _ = load_ground_truth(make_content(fields, {"bbox": [5, 5, 9, 9]}))["annotations"]
    assert fields.items() <= annotation.items()


def test_ids_of_zero_and_repeated_ids_are_replaced() -> None:
    repeated = {"id": 0, "bbox": [1, 2, 3, 4]}
    annotations = load_ground_truth(make_content(repeated, repeated))["annotations"]
    assert [annotation["id"] for annotation in annotations] == [1, 2]


@pytest.mark.parametrize("field", ["images", "categories", "annotations"])
def test_a_missing_list_is_an_error(field: str) -> None:
    content = make_content()
    del content[field]
    with pytest.raises(ValueError, match=f"but no '{field}'"):
        load_ground_truth(content)


def test_repeated_category_names_are_errors() -> None:
    content = make_content()
    content["categories"].append({"id": 4, "name": "cat"})
    with pytest.raises(ValueError, match="names differ only in case or spaces .'cat' and 'cat'."):
        load_ground_truth(content)


def test_an_unknown_category_is_an_error() -> None:
    with pytest.raises(ValueError, match="annotation number 1 of the file: category 9"):
        load_ground_truth(make_content({"category_id": 9, "bbox": [1, 2, 3, 4]}))


def test_an_annotation_without_box_and_segmentation_is_an_error() -> None:
    with pytest.raises(ValueError, match="annotation with neither bbox nor segmentation .annotation 77."):
        load_ground_truth(make_content({"id": 77}))


def test_polygons_and_both_kinds_of_rle_give_the_same_mask() -> None:
    image = {"id": 1, "height": 40, "width": 50}
    from_polygons = to_rle(SQUARE, image)
    bits = coco_mask.decode(from_polygons)
    # COCO's uncompressed RLE runs down the columns and begins with zeros
    flat = bits.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    from_counts = to_rle({"size": [40, 50], "counts": counts}, image)
    assert from_counts == from_polygons == to_rle(from_polygons, image)


def test_polygons_without_the_size_of_the_image_are_errors() -> None:
    with pytest.raises(ValueError, match="image 1 has no 'height'"):
        to_rle(SQUARE, {"id": 1, "width": 50})


def test_files_that_cannot_be_read_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no annotations at .*nothing.json"):
        load_ground_truth(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(BadAnnotations, match="half.json is not complete JSON"):
        load_ground_truth(tmp_path / "half.json")
