"""YOLO: boxes and polygons in fractions, configurations of several tools, and lines that are wrong."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder

PICTURE = (64, 48)
BOX = "0 0.5 0.5 0.25 0.5"
CONFIG = "path: /content/somewhere/set\ntrain: images/train\nval: images/val\ntest:\nnc: 2\nnames: ['cat', 'no']\n"
unit = st.integers(0, 10**6)


@given(w=unit, h=unit, x=unit, y=unit, size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_boxes_are_exact_to_float64(tmp_path: Path, w: int, h: int, x: int, y: int, size: tuple[int, int]) -> None:
    """Six decimals, as the tools write them; the expected box is computed with fractions."""
    root = tmp_path / f"{w} {h} {x} {y} {size}"
    root.mkdir(exist_ok=True)
    Image.new("1", size).save(root / "a.png")
    values = [f"{value / 10**6:.6f}" for value in (x, y, w, h)]
    (root / "a.txt").write_text(f"0 {' '.join(values)}\n")
    cx, cy, fw, fh = (Fraction(value) for value in values)
    expected = [(cx - fw / 2) * size[0], (cy - fh / 2) * size[1], fw * size[0], fh * size[1]]
    split = read_folder(root).splits["all"]
    assert split.content is not None
    if w == 0 or h == 0:
        assert split.content["annotations"] == [] and split.findings.count("dropped") == 1
    else:
        (entry,) = split.content["annotations"]
        assert entry["bbox"] == pytest.approx([float(v) for v in expected], rel=1e-12, abs=1e-9)


def test_boxes_polygons_and_unlabelled_images_of_a_configuration(folder: Any, objects: Any) -> None:
    data = read_folder(
        folder(
            {
                "data.yaml": "\ufeff" + CONFIG.replace("\n", "\r\n"),
                **{f"images/{name}": PICTURE for name in ("train/a.png", "train/b.png", "train/c.png", "val/a.png")},
                "labels/train/a.txt": "\ufeff0 0.5 0.5 0.25 0.5\r\n\r\n1 0.25 0.25 0.5 0.25 0.5 0.75\r\n",
                "labels/train/b.txt": "",
                "labels/val/a.txt": "1.0 0.5 0.5 1 1\n",
            }
        )
    )
    assert data.format == "YOLO" and list(data.splits) == ["train", "val"]
    train, val = data.splits["train"], data.splits["val"]
    assert objects(train) == {"a.png": [("cat", 24, 12, 16, 24), ("no", 16, 12, 16, 24)], "b.png": [], "c.png": []}
    assert objects(val) == {"a.png": [("no", 0, 0, 64, 48)]}
    assert train.content is not None
    assert train.content["annotations"][1]["segmentation"] == [[16, 12, 32, 12, 32, 36]]
    assert "segmentation" not in train.content["annotations"][0]
    assert train.findings.count("note", "image") == 1 and train.findings.count("refused") == 0


LAYOUTS: dict[str, dict[str, Any]] = {
    "Roboflow": {
        "data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']\n",
        "train/images/a.png": PICTURE,
        "train/labels/a.txt": BOX,
        "valid/images/b.png": PICTURE,
        "valid/labels/b.txt": BOX,
        "README.roboflow.txt": "1 2 3 4 5",
    },
    "ultralytics, names by number, lists of files": {
        "my.yml": "path: ../datasets/x\ntrain: train.txt\nval: [val.txt]\nnames:\n  0: cat\n  7: dog\n",
        "train.txt": "./images/a.png\n",
        "val.txt": "/old/disk/images/b.png\r\n",
        "images/a.png": PICTURE,
        "labels/a.txt": BOX,
        "images/b.png": PICTURE,
        "labels/b.txt": BOX,
    },
    "several folders": {
        "data.yaml": "train:\n  - images/one\n  - images/two\nval: images/three/\nnames: [cat]\n",
        "images/one/a.png": PICTURE,
        "labels/one/a.txt": BOX,
        "images/two/c.png": PICTURE,
        "labels/two/c.txt": "",
        "images/three/b.png": PICTURE,
        "labels/three/b.txt": BOX,
    },
    "labels beside the images": {
        "dataset.yaml": "train: train\nval: val\nnames: [cat]\n",
        "train/a.png": PICTURE,
        "train/a.txt": BOX,
        "val/b.png": PICTURE,
        "val/b.txt": BOX,
    },
    "labels elsewhere": {
        "sub/config.yaml": "path: .\ntrain: images/train\nval: images/val\nnames: [cat]\n",
        "images/train/a.png": PICTURE,
        "images/val/b.png": PICTURE,
        "sub/labels/train/a.txt": BOX,
        "sub/labels/val/b.txt": BOX,
        "other/a.txt": "0 0 0 0 0",
    },
    "darknet, CVAT": {
        "obj.data": "classes = 1\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n",
        "obj.names": "cat\n",
        "train.txt": "data/obj_train_data/a.png\n",
        "valid.txt": "data/obj_valid_data/b.png\n",
        "obj_train_data/a.png": PICTURE,
        "obj_train_data/a.txt": BOX,
        "obj_valid_data/b.png": PICTURE,
        "obj_valid_data/b.txt": BOX,
    },
    "names without splits, as supervision writes": {
        "data.yaml": "nc: 1\nnames: [cat]\n",
        "train/images/a.png": PICTURE,
        "train/labels/a.txt": BOX,
        "valid/images/b.png": PICTURE,
        "valid/labels/b.txt": BOX,
    },
    "no configuration": {
        "images/train/a.png": PICTURE,
        "labels/train/a.txt": BOX,
        "classes.txt": "cat\n",
        "images/val/b.png": PICTURE,
        "labels/val/b.txt": BOX,
    },
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_yolo_are_read(files: dict[str, Any], folder: Any, objects: Any) -> None:
    data = read_folder(folder(files))
    assert list(data.splits) == ["train", "val"]
    for name, image in (("train", "a.png"), ("val", "b.png")):
        found = {Path(path).name: entries for path, entries in objects(data.splits[name]).items()}
        assert found[image] == [("cat", 24, 12, 16, 24)]
        assert [group.line() for group in data.splits[name].findings.of("refused", "dropped")] == []


def test_labelimgs_folder_has_no_splits_and_its_classes_txt_is_no_label_file(folder: Any, objects: Any) -> None:
    data = read_folder(
        folder({"a.png": PICTURE, "a.txt": "1 0.5 0.5 0.25 0.5", "classes.txt": "dog\ncat\n", "b.png": PICTURE})
    )
    assert objects(data.splits["all"]) == {"a.png": [("cat", 24, 12, 16, 24)], "b.png": []}
    assert [c["name"] for c in data.splits["all"].content["categories"]] == ["dog", "cat"]  # type: ignore[index]


def test_classes_without_names_are_called_by_their_numbers_and_it_is_said(folder: Any, objects: Any) -> None:
    data = read_folder(folder({"a.png": PICTURE, "a.txt": "10 0.5 0.5 0.25 0.5\n2 0.5 0.5 0.25 0.5\n"}))
    assert [entry[0] for entry in objects(data.splits["all"])["a.png"]] == ["class 10", "class 2"]
    assert [c["name"] for c in data.splits["all"].content["categories"]] == ["class 2", "class 10"]  # type: ignore[index]
    assert any("no list of names" in note for note in data.notes)


def test_key_points_after_the_box_are_not_read_as_a_polygon(folder: Any, objects: Any) -> None:
    config = "train: images\nval: images\nkpt_shape: [2, 3]\nnames: [cat]\n"
    line = "0 0.5 0.5 0.25 0.5 0.5 0.5 2 0.6 0.6 2"
    data = read_folder(folder({"data.yaml": config, "images/a.png": PICTURE, "labels/a.txt": line}))
    assert objects(data.splits["train"]) == {"a.png": [("cat", 24, 12, 16, 24)]}
    assert any("1 images of val are in train too" in note for note in data.notes)


BAD_LINES = {
    "text": "cat 0.5 0.5 0.1 0.1",
    "too few": "0 0.5 0.5 0.1",
    "a score": "0 0.5 0.5 0.1 0.1 0.9",
    "odd polygon": "0 0.1 0.1 0.2 0.1 0.2 0.2 0.3",
    "class without a name": "2 0.5 0.5 0.1 0.1",
    "negative class": "-1 0.5 0.5 0.1 0.1",
    "half a class": "0.5 0.5 0.5 0.1 0.1",
    "NaN": "0 nan 0.5 0.1 0.1",
    "infinite": "0 0.5 0.5 inf 0.1",
    "infinite class": "inf 0.5 0.5 0.1 0.1",
    "pixels": "0 32 24 10 10",
    "negative side": "0 0.5 0.5 -0.1 0.1",
    "polygon outside": "0 0.1 0.1 1.2 0.1 0.2 0.2",
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_are_refused_with_file_and_line_and_the_others_kept(bad: str, folder: Any, objects: Any) -> None:
    text = f"0 0.5 0.5 0.25 0.5\n{bad}\n"
    root = folder(
        {
            "data.yaml": CONFIG,
            "images/train/a.png": PICTURE,
            "images/val/b.png": PICTURE,
            "labels/val/b.txt": "",
            "labels/train/a.txt": text,
        }
    )
    split = read_folder(root).splits["train"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("refused") == 1
    with pytest.raises(BadAnnotations, match=r"labels/train/a\.txt:2"):
        split.findings.raise_if_refused()


def test_values_just_outside_are_used_and_said(folder: Any, objects: Any) -> None:
    split = read_folder(folder({"a.png": PICTURE, "a.txt": "0 0.5 0.5 1.001 0.5\n"})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("warning") == 1


BAD_CONFIGS = {
    "not YAML": ("train: [\nnames: x", "is not valid YAML"),
    "folder missing": ("train: images/tran\nnames: [cat]", "train is images/tran, which does not exist"),
    "no folder": ("train:\nval:\nnames: [cat]", "train and val are empty"),
    "names a number": ("train: images/train\nnames: 3", "names is '3'"),
    "names repeat": ("train: images/train\nnames: [cat, cat]", "names repeats cat"),
}


@pytest.mark.parametrize(("config", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configurations_are_errors_that_name_them(config: str, message: str, folder: Any) -> None:
    root = folder({"data.yaml": config, "images/train/a.png": PICTURE, "labels/train/a.txt": "0 0.5 0.5 0.1 0.1"})
    with pytest.raises(BadAnnotations, match=f"data.yaml.*{message}"):
        read_folder(root)


def test_images_that_cannot_be_used_are_refused_with_their_objects_counted(folder: Any) -> None:
    files = {
        "data.yaml": "train: train.txt\nval: images/val\nnames: [cat]\n",
        "train.txt": "images/a.png\nimages/gone.png\nimages/broken.png\n",
        "images/a.png": PICTURE,
        "images/broken.png": b"<html>",
        "images/val/b.png": PICTURE,
        "labels/val/b.txt": "0 0.5 0.5 0.1 0.1",
        "labels/a.txt": "",
        "labels/broken.txt": "0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1",
        "labels/gone.txt": "0 0.5 0.5 0.1 0.1",
        "labels/orphan.txt": "0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1",
    }
    findings = read_folder(folder(files)).splits["train"].findings
    assert findings.count("refused", "image") == 2
    assert findings.count("dropped", "object") == 2 + 1 + 2 and findings.count("dropped", "file") == 1


def test_no_label_file_at_all_is_refused_in_train_and_leaves_test_out(folder: Any) -> None:
    files = {"data.yaml": CONFIG.replace("test:", "test: images/test"), "labels/val/b.txt": "0 0.5 0.5 0.1 0.1"}
    files |= {f"images/{name}": PICTURE for name in ("train/a.png", "val/b.png", "test/c.png")}  # type: ignore[dict-item]
    data = read_folder(folder(files))
    assert list(data.splits) == ["train", "val"] and any(note.startswith("test: no image") for note in data.notes)
    with pytest.raises(BadAnnotations, match="no image has a label file.*put them beside the images"):
        data.splits["train"].findings.raise_if_refused()
