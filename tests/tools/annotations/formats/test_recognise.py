"""Folders as the annotation tools write them are recognised; what cannot be told apart is an error that names it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from resnet_backbone.errors import InvalidValue, MissingFile
from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder


def coco(*names: str, key: str = "file_name") -> str:
    images = [{"id": i, key: name, "width": 64, "height": 48} for i, name in enumerate(names, 1)]
    return json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]})


PICTURE = (64, 48)
SPLITS = ("train", "val", "test")
ROBOFLOW = (("a.png", PICTURE), ("_annotations.coco.json", coco("a.png")))
# the files, then for every split the annotation file and the images' folder
LAYOUTS: dict[str, tuple[dict[str, Any], str, dict[str, tuple[str, str]]]] = {
    "Roboflow": (
        {f"{s}/{f}": c for s in ("train", "valid", "test") for f, c in ROBOFLOW},
        "COCO (Roboflow)",
        {name: (f"{s}/_annotations.coco.json", s) for name, s in zip(SPLITS, ("train", "valid", "test"))},
    ),
    "CVAT": (
        {"images/a.png": PICTURE, "annotations/instances_default.json": coco("a.png")},
        "COCO (CVAT)",
        {"all": ("annotations/instances_default.json", "images")},
    ),
    "CVAT with a train and a val task": (
        {
            "images/train/a.png": PICTURE,
            "images/val/b.png": PICTURE,
            "annotations/instances_default.json": coco("train/a.png"),
            "annotations/val_instances_default.json": coco("val/b.png"),
        },
        "COCO (CVAT)",
        {
            "train": ("annotations/instances_default.json", "images"),
            "val": ("annotations/val_instances_default.json", "images"),
        },
    ),
    "Label Studio": (
        {"images/a.png": PICTURE, "result.json": coco("images/a.png")},
        "COCO (Label Studio)",
        {"all": ("result.json", "")},
    ),
    "Label Studio, older": (
        {"images/a.png": PICTURE, "result.json": coco("..\\..\\data\\media\\images\\a.png")},
        "COCO (Label Studio)",
        {"all": ("result.json", "")},
    ),
    "labelme2coco": (
        {"JPEGImages/a.png": PICTURE, "Visualization/a.png": PICTURE, "annotations.json": coco("JPEGImages/a.png")},
        "COCO",
        {"all": ("annotations.json", "")},
    ),
    "FiftyOne": (
        {"data/a.png": PICTURE, "labels.json": coco("a.png")},
        "COCO (FiftyOne)",
        {"all": ("labels.json", "data")},
    ),
    "Datumaro": (
        {
            **{f"images/{s}/a.png": PICTURE for s in ("train", "val")},
            **{f"annotations/instances_{s}.json": coco("a.png") for s in ("train", "val")},
        },
        "COCO",
        {s: (f"annotations/instances_{s}.json", f"images/{s}") for s in ("train", "val")},
    ),
    "LVIS": (
        {
            "train2017/1.png": PICTURE,
            "val2017/2.png": PICTURE,
            "lvis_v1_train.json": coco("http://images.cocodataset.org/train2017/1.png", key="coco_url"),
            "lvis_v1_val.json": coco("http://i.org/train2017/1.png", "http://i.org/val2017/2.png", key="coco_url"),
        },
        "COCO (LVIS)",
        {"train": ("lvis_v1_train.json", ""), "val": ("lvis_v1_val.json", "")},
    ),
    "COCO": (
        {
            **{f"{s}2017/{s}.png": PICTURE for s in ("train", "val")},
            **{
                f"annotations/{task}_{s}2017.json": coco(f"{s}.png")
                for task in ("instances", "captions", "person_keypoints")
                for s in ("train", "val")
            },
        },
        "COCO",
        {s: (f"annotations/instances_{s}2017.json", f"{s}2017") for s in ("train", "val")},
    ),
    "one file beside images": (
        {"a.png": PICTURE, "b.png": PICTURE, "My labels.JSON": "\ufeff" + coco("a.png", "b.png")},
        "COCO",
        {"all": ("My labels.JSON", "")},
    ),
    "images moved": (
        {"pictures/x/a.png": PICTURE, "pictures/x/b.png": PICTURE, "c.json": coco("C:\\old\\a.png", "/home/me/b.png")},
        "COCO",
        {"all": ("c.json", "pictures/x")},
    ),
    "no image there": (
        {"photos/z.png": PICTURE, "c.json": coco("a.png")},
        "COCO",
        {"all": ("c.json", "photos")},
    ),
}


@pytest.mark.parametrize(("files", "title", "expected"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_coco_files_are_found_with_their_images(
    files: dict[str, Any], title: str, expected: dict[str, tuple[str, str]], folder: Any
) -> None:
    root = folder(files)
    data = read_folder(root)
    assert data.format == title
    found = {name: (split.annotations, split.images) for name, split in data.splits.items()}
    assert found == {name: (root / path, root / images) for name, (path, images) in expected.items()}
    assert all(split.content is None for split in data.splits.values())


def test_a_file_that_is_named_is_read_alone(folder: Any) -> None:
    root = folder({"a.png": PICTURE, "one.json": coco("a.png"), "two.json": coco("a.png")})
    with pytest.raises(BadAnnotations, match=r"all: one.json, two.json\): remove .*give the path of one file"):
        read_folder(root)
    assert read_folder(root / "two.json").splits["all"].annotations == root / "two.json"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '[{"image_id": 1, "bbox": []}]',
        '{"images": [], "annotations": [{"segments_info": []}]}',
        '{"a": 1',
    ],
)
def test_other_json_files_are_not_taken_for_coco(text: str, folder: Any) -> None:
    root = folder({"a.png": PICTURE, "a.json": text})
    with pytest.raises(BadAnnotations, match="no annotations were recognised among 2 files, 1 of which are images"):
        read_folder(root)


def test_several_formats_are_an_error_unless_one_is_named(folder: Any) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    root = folder(
        {
            "a.png": PICTURE,
            "a.xml": f"<annotation><object><name>cat</name>{box}</object></annotation>",
            "c.json": coco("a.png"),
        }
    )
    with pytest.raises(BadAnnotations, match="coco: c.json; voc: a.xml"):
        read_folder(root)
    data = read_folder(root, "voc")
    assert data.format == "Pascal VOC" and "another format are there and were not read: COCO, c.json" in data.notes[-1]
    with pytest.raises(BadAnnotations, match="no YOLO annotations: looked for data.yaml"):
        read_folder(root, "yolo")
    with pytest.raises(InvalidValue, match="did you mean 'yolo'"):
        read_folder(root, "yollo")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="no folder at"):
        read_folder(tmp_path / "nowhere")


def test_links_are_followed_and_loops_end(folder: Any, tmp_path: Path) -> None:
    root = folder({"c.json": coco("a.png")})
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(b"")
    os.symlink(elsewhere, root / "images")
    os.symlink(root, elsewhere / "back")
    assert read_folder(root).splits["all"].images == root / "images"


def test_names_never_lead_out_of_the_folder(folder: Any) -> None:
    root = folder({"set/c.json": coco("../outside/a.png"), "outside/a.png": PICTURE, "set/x/b.png": PICTURE})
    data = read_folder(root / "set")
    assert data.splits["all"].images == root / "set" / "x" and "0 of the first 1 file names" in data.notes[0]


def test_every_key_in_the_list_of_formats_is_in_the_message_of_an_unknown_folder(folder: Any) -> None:
    from tools.annotations.formats import FORMATS

    with pytest.raises(BadAnnotations) as error:
        read_folder(folder({"readme.txt": "nothing"}))
    assert all(re.search(rf"^  {entry.title}: ", str(error.value), re.MULTILINE) for entry in FORMATS.values())


def test_archives_are_called_what_they_are(folder: Any) -> None:
    root = folder({"set.zip": b"PK", "readme.md": "x"})
    with pytest.raises(BadAnnotations, match=r"Extract set\.zip first"):
        read_folder(root)
    with pytest.raises(InvalidValue, match="is an archive: extract it"):
        read_folder(root / "set.zip")


def test_images_that_no_annotation_names_are_counted(folder: Any) -> None:
    files = {f"{name}.png": PICTURE for name in "abc"}
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    text = f"<annotation><object><name>{{}}</name>{box}</object></annotation>"
    data = read_folder(folder({**files, "a.xml": text.format("Cat"), "b.xml": text.format("cat")}))
    assert "1 images are not used, such as c.png: they have no annotations" in data.notes
    warnings = [group.line() for group in data.splits["all"].findings.of("warning")]
    assert warnings == [
        "warning: 1 category: names of classes that differ only in case or spaces ('Cat', 'cat'): "
        "if they are one class, merge them"
    ]
