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
from tools.evaluation.ground_truth import box_objects, load_ground_truth, mask_areas, mask_objects, to_rle

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
    objects = box_objects(load_ground_truth(content))
    assert content == before
    assert (objects.areas.tolist(), objects.crowd.tolist()) == ([12.0, 100.0, 100.0], [False] * 3)
    assert objects.boxes.tolist() == [[1.0, 2.0, 3.0, 4.0], [10.0] * 4, [10.0] * 4]


def test_existing_fields_are_kept() -> None:
    content = make_content({"bbox": [1, 2, 3, 4], "area": 7.5, "iscrowd": 1}, {"bbox": [5, 5, 9, 9]})
    objects = box_objects(load_ground_truth(content))
    assert (objects.areas.tolist(), objects.crowd.tolist()) == ([7.5, 81.0], [True, False])


def test_a_crowd_without_an_outline_has_that_of_its_box() -> None:
    content = make_content({"bbox": [1, 2, 3, 4], "iscrowd": 1}, {"segmentation": SQUARE})
    masks = mask_objects(load_ground_truth(content), np.arange(1)).masks
    assert masks == [[[1, 2, 4, 2, 4, 6, 1, 6]], SQUARE]


@pytest.mark.parametrize("side", ["height", "width"])
def test_polygons_of_an_image_without_a_size_are_not_scored_as_empty_masks(side: str) -> None:
    content = make_content({"segmentation": SQUARE})
    del content["images"][0][side]
    with pytest.raises(ValueError, match="image 1 has no 'height' and 'width', which polygons need"):
        mask_objects(load_ground_truth(content), np.arange(1))


@pytest.mark.parametrize("count", [0, 1, 254, 255, 256, 600])
def test_areas_of_any_number_of_masks_are_those_of_each(count: int) -> None:
    rows = np.random.default_rng(count).integers(0, 40, count)
    bits = [np.asfortranarray(np.tile(np.arange(40)[:, None] < n, 50).astype(np.uint8)) for n in rows.tolist()]
    assert mask_areas([coco_mask.encode(b) for b in bits]).tolist() == (50 * rows).tolist()


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
