"""labelme: shapes of all kinds, groups, and files as Windows and newer versions write them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder

PICTURE = (64, 48)
TRIANGLE = [[10, 5], [30, 5], [30, 25]]


def shape(points: Any, label: Any = "cat", kind: str | None = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def labelme(*shapes: Any, name: str = "a.png", **more: Any) -> str:
    content = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": name, "imageData": None}
    return json.dumps({**content, "imageHeight": 48, "imageWidth": 64, **more})


def png(values: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_every_shape_with_an_area_is_an_object_and_the_others_are_counted(folder: Any) -> None:
    part = np.zeros((4, 6), np.uint8)
    part[1:3, 2:5] = 255
    text = labelme(
        shape(TRIANGLE),
        shape(TRIANGLE, kind=None),
        shape([[20, 30], [4, 10]], kind="rectangle"),
        shape([[20, 20], [20, 28]], kind="circle"),
        shape([[7, 8], [12, 11]], kind="mask", mask=png(part)),
        shape([[1, 1]], kind="point"),
        shape([[1, 1], [5, 5]], kind="line"),
        shape([[1, 1], [5, 5], [6, 5]], kind="linestrip"),
        shape(TRIANGLE, label="__ignore__"),
    )
    split = read_folder(folder({"a.png": PICTURE, "a.json": text})).splits["all"]
    assert split.content is not None
    polygon, old, rectangle, circle, mask = split.content["annotations"]
    assert polygon["bbox"] == old["bbox"] == [10, 5, 20, 20] and polygon["segmentation"] == [[10, 5, 30, 5, 30, 25]]
    assert rectangle["bbox"] == [4, 10, 16, 20] and "segmentation" not in rectangle
    assert circle["bbox"] == pytest.approx([12, 12, 16, 16])
    expected = np.zeros((48, 64), bool)
    expected[9:11, 9:12] = True
    assert (coco_mask.decode(mask["segmentation"]).astype(bool) == expected).all() and mask["area"] == 6
    assert split.findings.count("dropped") == 4


def test_parts_with_one_label_and_group_are_one_object(folder: Any, objects: Any) -> None:
    second = [[40, 30], [50, 30], [50, 40]]
    text = labelme(
        shape(TRIANGLE, group_id=1), shape(second, group_id=1), shape(second, label="dog", group_id=1), shape(TRIANGLE)
    )
    split = read_folder(folder({"a.png": PICTURE, "a.json": text})).splits["all"]
    assert objects(split) == {
        "a.png": [("cat", 10, 5, 40, 35), ("dog", 40, 30, 10, 10), ("cat", 10, 5, 20, 20)],
    }
    assert split.content is not None and len(split.content["annotations"][0]["segmentation"]) == 2
    assert split.findings.count("note", "part") == 1


def test_paths_of_windows_and_other_folders_are_found(folder: Any, objects: Any) -> None:
    files = {
        "images/a.png": PICTURE,
        "images/b.png": PICTURE,
        "json/a.json": labelme(shape(TRIANGLE), name="..\\images\\a.png"),
    }
    files["json/label_7.json"] = "\ufeff" + labelme(shape(TRIANGLE), name="C:\\data\\b.png", imageHeight=None)
    split = read_folder(folder(files)).splits["all"]
    assert objects(split) == {"a.png": [("cat", 10, 5, 20, 20)], "b.png": [("cat", 10, 5, 20, 20)]}
    assert split.findings.count("refused", "image") == 0 and split.content is not None
    assert split.content["images"][1]["height"] == 48


def test_an_image_that_is_only_embedded_is_said(folder: Any) -> None:
    files = {
        "a.json": labelme(shape(TRIANGLE), imageData="iVBORw0KGgo="),
        "b.png": PICTURE,
        "b.json": labelme(name="b.png"),
    }
    split = read_folder(folder(files)).splits["all"]
    with pytest.raises(BadAnnotations, match="only embedded in the JSON .a.json.*write the image file"):
        split.findings.raise_if_refused()
    assert split.findings.count("dropped") == 1


def test_an_image_beside_a_json_that_embeds_it_is_used(folder: Any, objects: Any) -> None:
    text = labelme(shape(TRIANGLE), name="a.json", imageData="iVBORw0KGgo=")
    split = read_folder(folder({"a.png": PICTURE, "a.json": text})).splits["all"]
    assert objects(split) == {"a.png": [("cat", 10, 5, 20, 20)]} and split.findings.of("refused") == []


BAD_SHAPES: dict[str, Any] = {
    "no label": shape(TRIANGLE, label=None),
    "empty label": shape(TRIANGLE, label=" "),
    "points missing": {"label": "cat"},
    "text": shape([["a", 1], [2, 2], [3, 3]]),
    "three numbers": shape([[1, 2, 3], [2, 2, 2], [3, 3, 3]]),
    "NaN": shape([[float("nan"), 1], [2, 2], [3, 3]]),
    "no points": shape([]),
    "unknown kind": shape(TRIANGLE, kind="cube"),
    "rectangle of three": shape(TRIANGLE, kind="rectangle"),
    "mask that is no PNG": shape([[1, 1], [2, 2]], kind="mask", mask="xxxx"),
    "mask outside": shape([[60, 1], [70, 2]], kind="mask", mask=png(np.full((4, 10), 255, np.uint8))),
    "empty mask": shape([[1, 1], [2, 2]], kind="mask", mask=png(np.zeros((4, 10), np.uint8))),
    "no shape": "cat",
}


@pytest.mark.parametrize("bad", BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_bad_shapes_are_refused_by_file_and_number_and_the_others_kept(bad: Any, folder: Any, objects: Any) -> None:
    split = read_folder(folder({"a.png": PICTURE, "a.json": labelme(shape(TRIANGLE), bad)})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("refused") == 1
    with pytest.raises(BadAnnotations, match="a.json, shape 2"):
        split.findings.raise_if_refused()


def test_shapes_of_no_area_are_dropped(folder: Any, objects: Any) -> None:
    flat = [shape([[1, 1], [2, 2]]), shape([[1, 1], [1, 9]], kind="rectangle"), shape([[5, 5], [5, 5]], kind="circle")]
    split = read_folder(folder({"a.png": PICTURE, "a.json": labelme(shape(TRIANGLE), *flat)})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("dropped") == 3


def test_a_cut_off_file_is_refused_by_name(folder: Any) -> None:
    split = read_folder(
        folder(
            {
                "a.png": PICTURE,
                "a.json": labelme(shape(TRIANGLE))[:-3],
                "b.png": PICTURE,
                "b.json": labelme(name="b.png"),
            }
        )
    )
    with pytest.raises(BadAnnotations, match="JSON file that is not complete .a.json"):
        split.splits["all"].findings.raise_if_refused()
