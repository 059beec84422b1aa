"""CVAT's own XML: all shapes, subsets, and shapes that are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder

PICTURE = (64, 48)
LABELS = "<meta><job><labels><label><name>dog</name></label><label><name>cat</name></label></labels></job></meta>"
BOX = '<box label="cat" xtl="8.5" ytl="4" xbr="20.25" ybr="30" occluded="0"><attribute name="a">1</attribute></box>\n'


def cvat(*images: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{LABELS}\n{"".join(images)}</annotations>'


def image(name: str, *shapes: str, subset: str = "default") -> str:
    return f'<image id="0" name="{name}" subset="{subset}" width="64" height="48">\n{"".join(shapes)}</image>\n'


def test_every_shape_with_an_area_is_an_object_and_the_others_are_counted(folder: Any) -> None:
    shapes = [
        BOX,
        '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90.0"/>',
        '<polygon label="dog" points="10.5,5;30,5;30,25"/>',
        '<ellipse label="cat" cx="30" cy="20" rx="10" ry="5"/>',
        '<mask label="cat" rle="1, 2, 2, 1" left="7" top="8" width="3" height="2"/>',
        '<polyline label="cat" points="1,1;2,2"/>',
        '<points label="cat" points="1,1"/>',
    ]
    data = read_folder(folder({"images/a.png": PICTURE, "annotations.xml": cvat(image("sub/a.png", *shapes))}))
    split = data.splits["all"]
    assert data.format == "CVAT" and split.content is not None
    assert [c["name"] for c in split.content["categories"]] == ["dog", "cat"]
    box, rotated, polygon, ellipse, mask = split.content["annotations"]
    assert box["bbox"] == [8.5, 4, 11.75, 26] and "segmentation" not in box
    assert rotated["bbox"] == pytest.approx([15, 5, 10, 20])
    assert polygon["segmentation"] == [[10.5, 5, 30, 5, 30, 25]] and polygon["category_id"] == 1
    assert ellipse["bbox"] == pytest.approx([20, 15, 20, 10])
    expected = np.zeros((48, 64), bool)
    expected[8, 8:10] = expected[9, 9] = True
    assert (coco_mask.decode(mask["segmentation"]).astype(bool) == expected).all()
    assert split.findings.count("dropped") == 2


def test_subsets_are_splits(folder: Any, objects: Any) -> None:
    text = cvat(image("a.png", BOX, subset="Train"), image("b.png", subset="Validation"), image("c.png"))
    data = read_folder(folder({"a.png": PICTURE, "b.png": PICTURE, "c.png": PICTURE, "annotations.xml": text}))
    assert {name: list(objects(split)) for name, split in data.splits.items()} == {
        "train": ["a.png", "c.png"],
        "val": ["b.png"],
    }


@pytest.mark.parametrize(
    "bad",
    [
        BOX.replace('label="cat"', ""),
        BOX.replace('xtl="8.5"', ""),
        BOX.replace("8.5", "nan"),
        '<polygon label="cat" points="1,1;2;3,3"/>',
        '<polygon label="cat"/>',
        '<mask label="cat" rle="1,2" left="7" top="8" width="3" height="2"/>',
        '<mask label="cat" rle="1,5" left="62" top="8" width="3" height="2"/>',
        '<mask label="cat" rle="6" left="7" top="8" width="3" height="2"/>',
        '<mask label="cat" rle="x" left="7" top="8" width="3" height="2"/>',
    ],
)
def test_bad_shapes_are_refused_with_file_and_line_and_the_others_kept(bad: str, folder: Any, objects: Any) -> None:
    split = read_folder(folder({"a.png": PICTURE, "a.xml": cvat(image("a.png", BOX, bad))})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("refused") == 1
    with pytest.raises(BadAnnotations, match=r"a\.xml:6"):
        split.findings.raise_if_refused()


def test_missing_and_repeated_images_are_refused_with_their_objects_counted(folder: Any) -> None:
    text = cvat(image("a.png", BOX), image("a.png", BOX), image("gone.png", BOX, BOX))
    split = read_folder(folder({"a.png": PICTURE, "a.xml": text})).splits["all"]
    assert split.findings.count("refused", "image") == 2 and split.findings.count("dropped") == 3


@pytest.mark.parametrize(
    ("text", "message"), [(cvat()[:-5], "cannot be parsed"), (cvat('<track id="0" label="cat"/>'), "tracks of a video")]
)
def test_files_that_cannot_be_used_are_errors(text: str, message: str, folder: Any) -> None:
    with pytest.raises(BadAnnotations, match=f"a.xml .*{message}"):
        read_folder(folder({"a.png": PICTURE, "a.xml": text}))
