"""Records match the annotation file, everything dropped is counted, and wrong files give clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.annotations.findings import BadAnnotations
from tools.annotations.reader import ReadOptions
from tools.data.coco import CocoData, load_coco, restrict

MASKS = ReadOptions(masks=True)

# ids neither contiguous nor sorted
CATEGORIES = [{"id": 50, "name": "ship"}, {"id": 7, "name": "cat"}, {"id": 12, "name": "tree"}]
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def annotation(image_id: int, category_id: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0, "segmentation": SQUARE} | more


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """A function that writes two images of 80 x 60, listed by descending id, with the given annotations."""

    def make(annotations: list[dict[str, Any]], **parts: Any) -> tuple[Path, Path]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        images = [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in (9, 4)]
        for image in images:
            Image.new("RGB", (80, 60)).save(folder / image["file_name"])
        numbered = [{"id": number, **a} for number, a in enumerate(annotations)]
        content = {"images": images, "annotations": numbered, "categories": CATEGORIES} | parts
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return folder, tmp_path / "instances.json"

    return make


def boxes_of(data: CocoData) -> list[list[list[float]]]:
    return [record.boxes.tolist() for record in data.records]


def test_labels_follow_the_category_ids_and_records_the_image_ids(write: Callable[..., tuple[Path, Path]]) -> None:
    files = write([annotation(4, 12, [0, 0, 5, 5]), annotation(9, 7, [1, 2, 3, 4]), annotation(4, 50, [5, 5, 9, 9])])
    data = load_coco(*files)
    assert data.category_ids == (7, 12, 50) and data.class_names == ("cat", "tree", "ship")
    assert [record.image_id for record in data.records] == [4, 9]
    assert [record.labels.tolist() for record in data.records] == [[1, 2], [0]]
    assert boxes_of(data) == [[[0, 0, 5, 5], [5, 5, 14, 14]], [[1, 2, 4, 6]]]
    assert (data.records[0].size.height, data.records[0].size.width) == (60, 80)
    assert dict(data.dropped) == {}


def test_crowds_are_left_out_and_counted(write: Callable[..., tuple[Path, Path]]) -> None:
    crowd = annotation(4, 7, [0, 0, 50, 50], iscrowd=1, segmentation={"size": [60, 80], "counts": [0, 4800]})
    data = load_coco(*write([crowd, annotation(4, 7, [1, 1, 5, 5]), {**crowd, "image_id": 9}]), MASKS)
    assert [len(record.boxes) for record in data.records] == [1, 0]
    assert [record.crowds for record in data.records] == [1, 1]
    assert data.summary()["crowds"] == 2 and data.summary()["boxes"] == 1


BAD_BOXES = [
    ([10, 10, 0, 5], "box of no area inside its image"),
    ([10, 10, 5, -3], "box of no area inside its image"),
    ([80, 0, 10, 10], "box of no area inside its image"),  # beyond the right edge
    ([-20, -20, 15, 15], "box of no area inside its image"),
    ([float("nan"), 0, 5, 5], "bbox with a value that is not finite or beyond any image"),
    ([0, 0, float("inf"), 5], "bbox with a value that is not finite or beyond any image"),
    ([0, float("-inf"), 5, float("inf")], "bbox with a value that is not finite or beyond any image"),
]


@pytest.mark.parametrize(("box", "reason"), BAD_BOXES)
def test_a_box_that_is_empty_or_not_finite_is_dropped_with_a_count(
    box: list[float], reason: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    options = ReadOptions(on_bad_annotation="drop")
    data = load_coco(*write([annotation(4, 7, box), annotation(4, 7, [1, 1, 5, 5])]), options)
    assert boxes_of(data) == [[[1, 1, 6, 6]], []]
    assert dict(data.dropped) == {reason: 1}


def test_boxes_are_clipped_to_their_image(write: Callable[..., tuple[Path, Path]]) -> None:
    data = load_coco(*write([annotation(4, 7, [-5, -8, 20, 20]), annotation(4, 7, [70, 50, 30, 30])]))
    assert boxes_of(data) == [[[0, 0, 15, 12], [70, 50, 80, 60]], []]
    assert dict(data.dropped) == {}


def test_min_box_px_drops_sides_of_exactly_this_length(write: Callable[..., tuple[Path, Path]]) -> None:
    files = write([annotation(4, 7, [0, 0, 4, 9]), annotation(4, 7, [0, 0, 4.5, 9])])
    data = load_coco(*files, min_box_px=4)
    assert boxes_of(data) == [[[0, 0, 4.5, 9]], []]
    assert dict(data.dropped) == {"box side of 4 px or less": 1}


def test_objects_without_an_outline_are_dropped_if_masks_are_needed(
    write: Callable[..., tuple[Path, Path]],
) -> None:
    unusable = [[], [[]], [[1, 1, 2, 2]], None]
    files = write([annotation(4, 7, [0, 0, 20, 20], segmentation=s) for s in [*unusable, SQUARE, [[3, 3], *SQUARE]]])
    with_masks = load_coco(*files, MASKS)
    reasons = {"object without an outline, which a model with masks needs": 2, "outline of fewer than three points": 2}
    assert dict(with_masks.dropped) == reasons
    outlines = [[polygon.reshape(-1).tolist() for polygon in s] for s in with_masks.records[0].segmentations]
    assert outlines == [SQUARE, SQUARE]
    assert len(load_coco(*files).records[0].boxes) == 6


def test_images_without_boxes_are_kept_by_default(write: Callable[..., tuple[Path, Path]]) -> None:
    files = write([annotation(9, 7, [0, 0, 5, 5])])
    kept = load_coco(*files)
    dropped = load_coco(*files).for_training(keep_empty=False)
    assert [len(record.boxes) for record in kept.records] == [0, 1]
    assert [record.image_id for record in dropped.records] == [9]
    assert dict(dropped.dropped) == {"image without boxes": 1}
    with pytest.raises(BadAnnotations, match="no object"):
        load_coco(*write([]))


def test_a_missing_image_is_an_error_or_is_skipped_with_a_count(
    write: Callable[..., tuple[Path, Path]],
) -> None:
    files = write([annotation(4, 7, [0, 0, 5, 5]), annotation(9, 7, [0, 0, 5, 5])])
    (files[0] / "9.png").unlink()
    with pytest.raises(BadAnnotations, match="1 image: image file missing.*9.png.*on_bad_image: skip"):
        load_coco(*files)
    data = load_coco(*files, ReadOptions(on_bad_image="skip"))
    assert [record.image_id for record in data.records] == [4]
    missing = f"image file missing from {files[0]} (of 2)"
    assert dict(data.dropped) == {missing: 1, "object of an image that is left out": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not complete JSON.*again"),
        ("[]", "holds a list, as result files do, not the lists images, annotations, categories"),
        ('{"images": [], "annotations": []}', r"has \['images', 'annotations'\], but no 'categories'"),
    ],
)
def test_a_file_that_is_no_coco_file_is_an_error_with_its_name(
    text: str, message: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    folder, annotations = write([])
    annotations.write_text(text)
    with pytest.raises(BadAnnotations, match=f"instances.json.*{message}"):
        load_coco(folder, annotations)


def test_missing_paths_are_errors_with_their_name(write: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    folder, annotations = write([])
    with pytest.raises(FileNotFoundError, match="nowhere.*data.*images"):
        load_coco(tmp_path / "nowhere", annotations)
    with pytest.raises(FileNotFoundError, match="nothing.json.*data.*annotations"):
        load_coco(folder, tmp_path / "nothing.json")


@pytest.mark.parametrize(("image_id", "category_id"), [(5, 7), (4, 8)])
def test_an_annotation_of_an_unlisted_image_is_counted_and_one_of_an_unlisted_category_an_error(
    image_id: int, category_id: int, write: Callable[..., tuple[Path, Path]]
) -> None:
    files = write([annotation(4, 7, [0, 0, 5, 5]), annotation(image_id, category_id, [0, 0, 5, 5])])
    if image_id == 5:
        assert dict(load_coco(*files).dropped) == {"annotation of an image that the file does not list": 1}
    else:
        with pytest.raises(BadAnnotations, match=r"category that the file does not list \(annotation 1: category 8\)"):
            load_coco(*files)


def test_repeated_ids_are_errors(write: Callable[..., tuple[Path, Path]]) -> None:
    with pytest.raises(BadAnnotations, match=r"category id that repeats \(id 7\)"):
        load_coco(*write([], categories=[*CATEGORIES, {"id": 7, "name": "dog"}]))
    image = {"id": 9, "file_name": "4.png", "height": 60, "width": 80}
    with pytest.raises(BadAnnotations, match=r"image id that repeats \(image 9\)"):
        load_coco(*write([], images=[image, {**image, "file_name": "9.png"}]))


@pytest.mark.parametrize(
    ("part", "key", "message"),
    [
        ("images", "file_name", "1 image: image without a file_name"),
        ("annotations", "image_id", "1 object: image_id that is missing"),
        ("annotations", "category_id", "1 object: category_id that is missing"),
        ("categories", "name", "1 category: category without a name"),
    ],
)
def test_an_entry_without_a_required_key_is_an_error(
    part: str, key: str, message: str, write: Callable[..., tuple[Path, Path]]
) -> None:
    folder, path = write([annotation(4, 7, [0, 0, 5, 5]), annotation(9, 7, [0, 0, 5, 5])])
    content = json.loads(path.read_text())
    del content[part][0][key]
    path.write_text(json.dumps(content))
    with pytest.raises(BadAnnotations, match=message):
        load_coco(folder, path)


def test_restrict_selects_by_number_of_objects_then_by_id(write: Callable[..., tuple[Path, Path]]) -> None:
    annotations = [annotation(9, 7, [0, 0, 5, 5])] * 2 + [annotation(4, 7, [0, 0, 5, 5])]
    data = load_coco(*write(annotations))
    assert restrict(data, objects=None, max_images=None) == data
    assert [r.image_id for r in restrict(data, objects=(2, 9), max_images=None).records] == [9]
    assert [r.image_id for r in restrict(data, objects=None, max_images=1).records] == [4]
    with pytest.raises(BadAnnotations, match="no image has 5 to 6 objects"):
        restrict(data, objects=(5, 6), max_images=None)


@pytest.mark.parametrize(
    ("split", "images", "annotations", "crowds"), [("train2017", 337, 2838, 28), ("val2017", 134, 1123, 11)]
)
@pytest.mark.parametrize("masks", [False, True])
def test_every_annotation_of_real_images_is_accounted_for(
    split: str, images: int, annotations: int, crowds: int, masks: bool, coco_mini: Path
) -> None:
    data = load_coco(coco_mini / split, coco_mini / "annotations" / f"instances_{split}.json", ReadOptions(masks=masks))
    summary = data.summary()
    assert (summary["images"], summary["crowds"]) == (images, crowds)
    assert summary["boxes"] + summary["crowds"] + sum(data.dropped.values()) == annotations
    assert sum(summary["categories"].values()) == sum(summary["box_sizes"].values()) == summary["boxes"]
    assert len(data.category_ids) == 80 and data.class_names[0] == "person" and data.category_ids[-1] == 90
    for record in data.records:
        limits = [record.size.width, record.size.height] * 2
        assert (record.boxes >= 0).all() and (record.boxes <= limits).all()
        assert np.isfinite(record.boxes).all() and (record.boxes[:, 2:] > record.boxes[:, :2]).all()
