"""Importing: what is written reads again as it was, and nothing is lost, overwritten or left half done."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from resnet_backbone.errors import AlreadyExists, InvalidValue
from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder
from tools.annotations.reader import read_annotations
from tools.jobs import imported_files, importing
from tools.jobs.imported_files import complete_folder
from tools.jobs.importing import ImportOptions, import_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120, highlight=False)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def yolo(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a YOLO data set without splits: one cat and one dog or truck in every image."""

    def write(num_images: int = 20, bad_line: str = "") -> Path:
        root = tmp_path / "yolo"
        root.mkdir()
        rng = np.random.default_rng(0)
        for i in range(num_images):
            coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
            coarse.resize((64, 48)).save(root / f"{i:02d}.png")
            (root / f"{i:02d}.txt").write_text(f"0 0.5 0.5 0.25 0.5\n{1 + i % 2} 0.25 0.25 0.125 0.25\n{bad_line}")
        (root / "classes.txt").write_text("cat\ndog\ntruck\n")
        return root

    return write


def read_objects(root: Path) -> Counter[tuple[Any, ...]]:
    """(split, file name, class, box) of every object in the written COCO files."""
    found: Counter[tuple[Any, ...]] = Counter()
    for name, split in read_folder(root).splits.items():
        content = json.loads(split.annotations.read_text())
        images = {image["id"]: image["file_name"] for image in content["images"]}
        assert all((split.images / image).is_file() for image in images.values())
        classes = {category["id"]: category["name"] for category in content["categories"]}
        for entry in content["annotations"]:
            found[name, images[entry["image_id"]], classes[entry["category_id"]], tuple(entry["bbox"])] += 1
    return found


def test_every_object_is_written_once_and_reads_again_with_its_box(
    yolo: Callable[..., Path], tmp_path: Path, console: Console
) -> None:
    out = tmp_path / "out"
    import_data(yolo(), out, ImportOptions(seed=3), console)
    found = read_objects(out)
    assert sorted(list(key[1:]) for key in found.elements()) == sorted(
        [f"{i:02d}.png", label, box]
        for i in range(20)
        for label, box in (("cat", (24, 12, 16, 24)), (("dog", "truck")[i % 2], (12, 6, 8, 12)))
    )
    assert Counter(key[0] for key in found.elements()) == {"train": 32, "val": 8}
    assert "YOLO" in said(console) and "val: 4 of 20 images, seed 3" in said(console)
    written = json.loads((out / "annotations" / "instances_val.json").read_text())
    assert "seed 3" in written["info"]["split"]
    assert read_folder(out).splits["val"].images == out / "val"
    images = {path.name: path.read_bytes() for path in (tmp_path / "yolo").glob("*.png")}
    assert {path.name: path.read_bytes() for path in out.rglob("*.png")} == images


def test_coco_files_keep_their_ids_outlines_and_other_fields(tmp_path: Path, console: Console) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for split in ("train", "valid"):
        (source / split / "deep").mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(source / split / "deep" / "a.png")
        content = {
            "images": [{"id": 17, "file_name": "C:\\x\\a.png", "width": 64, "height": 48}],
            "categories": [{"id": 5, "name": "cat"}],
            "annotations": [
                {
                    **{"id": 3, "image_id": 17, "category_id": 5, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 6},
                    **{"segmentation": [[1, 2, 4, 2, 4, 6]], "attributes": {"pose": "left"}},
                }
            ],
            "info": {"year": 2026},
            "licenses": [],
        }
        (source / split / "_annotations.coco.json").write_text(json.dumps(content))
    import_data(source, out, ImportOptions(link=True), console)
    content["images"][0]["file_name"] = "a.png"  # type: ignore[index]
    for split in ("train", "val"):
        written = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
        assert written == content
        assert (out / split / "a.png").is_symlink() and (out / split / "a.png").is_file()


def test_classes_are_chosen_and_merged_and_the_dropped_ones_counted(
    yolo: Callable[..., Path], tmp_path: Path, console: Console
) -> None:
    out = tmp_path / "out"
    import_data(yolo(), out, ImportOptions(classes=("thing=truck,cat",)), console)
    assert {key[2] for key in read_objects(out)} == {"thing"} and sum(read_objects(out).values()) == 30
    dropped = Counter(
        int(line.split()[2]) for line in said(console).splitlines() if "object of a class that --classes leaves" in line
    )
    assert sum(count * times for count, times in dropped.items()) == 10


@pytest.mark.parametrize("specs", [("cats",), ("x=cat,dgo",), ("cat", "x=cat")])
def test_unknown_and_repeated_classes_are_errors(
    specs: tuple[str, ...], yolo: Callable[..., Path], tmp_path: Path, console: Console
) -> None:
    with pytest.raises(InvalidValue, match="did you mean '(cat|dog)'|is given twice"):
        import_data(yolo(), tmp_path / "out", ImportOptions(classes=specs), console)
    assert not (tmp_path / "out").exists()


def test_a_class_whose_name_holds_an_equals_sign_can_be_chosen() -> None:
    assert importing.parse_classes(["a=b,c", "d"], ["a=b,c", "d"]) == {"a=b,c": ["a=b,c"], "d": ["d"]}


def test_chosen_classes_have_the_same_new_ids_in_all_splits(tmp_path: Path, console: Console) -> None:
    for split, ids in (("train", (4, 9, 2)), ("valid", (2, 4, 9))):
        folder = tmp_path / "source" / split
        folder.mkdir(parents=True)
        names = ("a", "b", "c") if split == "train" else ("c", "a", "d")
        content = {
            "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)],
            "categories": [{"id": i, "name": name} for i, name in zip(ids, names)],
            "annotations": [
                {"image_id": 1, "category_id": c, "bbox": [4 * n, 2, 3, 4]} for n, c in enumerate([*ids, ids[0]])
            ],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
        for i in (1, 2):
            Image.new("RGB", (64, 48)).save(folder / f"{i}.png")
    out = tmp_path / "out"
    import_data(tmp_path / "source", out, ImportOptions(classes=("c", "ab=b,a")), console)
    for split, labels in (("train", [2, 2, 1, 2]), ("val", [1, 2, 1])):
        written = json.loads((out / "annotations" / f"instances_{split}.json").read_text())
        assert written["categories"] == [{"id": 1, "name": "c"}, {"id": 2, "name": "ab"}]
        assert [entry["category_id"] for entry in written["annotations"]] == labels
        assert [entry["id"] for entry in written["images"]] == [1, 2]  # the one without objects too


def test_ignored_objects_stay_ignored(tmp_path: Path, console: Console) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    Image.new("RGB", (64, 48)).save(source / "a.png")
    objects = "".join(
        f"<object><name>cat</name><difficult>{i}</difficult><bndbox><xmin>{1 + 20 * i}</xmin><ymin>2</ymin>"
        f"<xmax>{19 + 20 * i}</xmax><ymax>19</ymax></bndbox></object>"
        for i in (0, 1)
    )
    (source / "a.xml").write_text(f"<annotation><filename>a.png</filename>{objects}</annotation>")
    import_data(source, out, ImportOptions(val_fraction=0), console)
    annotations = out / "annotations" / "instances_train.json"
    assert [entry.get("ignore", 0) for entry in json.loads(annotations.read_text())["annotations"]] == [0, 1]
    table = read_annotations(annotations, out / "train")
    assert table.crowd[table.rows].tolist() == [False, True]


def test_the_import_says_which_of_its_options_read_the_data(tmp_path: Path, console: Console) -> None:
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (64, 48)).save(source / "a.png")
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "elsewhere" / "b.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "../elsewhere/b.png"}],
        "annotations": [{"id": i, "image_id": 1 + i % 2, "category_id": 1, "bbox": [20, 20, 48, 40]} for i in (3, 4)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    content["annotations"].append({"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3]})  # type: ignore[attr-defined]
    (source / "c.json").write_text(json.dumps(content))
    with pytest.raises(BadAnnotations) as error:
        import_data(source, tmp_path / "out", ImportOptions(), console)
    assert "--outside-images" in str(error.value) and "--on-bad-annotation drop" in str(error.value)
    assert "--box-format xyxy" in str(error.value) and "data." not in str(error.value)
    options = ImportOptions(outside_images=True, box_format="xyxy", on_bad_annotation="drop", val_fraction=0)
    import_data(source, tmp_path / "out", options, console)
    written = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert [entry["bbox"] for entry in written["annotations"]] == [[20, 20, 28, 20]] * 2
    assert [entry["file_name"] for entry in written["images"]] == ["a.png", "b.png"]
    assert (tmp_path / "out" / "train" / "b.png").is_file()


def test_all_splits_are_checked_in_one_pass(tmp_path: Path, console: Console) -> None:
    for split in ("train", "valid"):
        folder = tmp_path / "source" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(folder / "a.png")
        content = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": 3, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    with pytest.raises(BadAnnotations, match=r"train/_annotations(?s:.*)valid/_annotations"):
        import_data(tmp_path / "source", tmp_path / "out", ImportOptions(), console)


def test_bad_entries_stop_the_import_or_are_dropped_and_counted(
    yolo: Callable[..., Path], tmp_path: Path, console: Console
) -> None:
    source, out = yolo(bad_line="9 0.5 0.5 0.1 0.1\n"), tmp_path / "out"
    with pytest.raises(BadAnnotations, match=r"20 objects: class number"):
        import_data(source, out, ImportOptions(), console)
    assert not out.exists()
    import_data(source, out, ImportOptions(on_bad_annotation="drop"), console)
    assert sum(read_objects(out).values()) == 40 and "20 objects: class number" in said(console)


def test_images_that_a_coco_file_lists_but_are_missing_stop_the_import(tmp_path: Path, console: Console) -> None:
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (64, 48)).save(source / "a.png")
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "../secret.png"}]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 3, 4]} for i in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (source / "c.json").write_text(json.dumps(content))
    Image.new("RGB", (64, 48)).save(tmp_path / "secret.png")
    with pytest.raises(
        BadAnnotations, match="1 image: image file missing from .*image 2: ../secret.png.*--outside-images"
    ):
        import_data(source, tmp_path / "out", ImportOptions(), console)


def test_an_existing_folder_is_kept_until_the_new_one_is_complete(
    yolo: Callable[..., Path], tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = yolo(), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="--overwrite"):
        import_data(source, out, ImportOptions(), console)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(imported_files.json, "dumps", stop)
        with pytest.raises(KeyboardInterrupt):
            import_data(source, out, ImportOptions(overwrite=True), console)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    import_data(source, out, ImportOptions(overwrite=True), console)
    assert not (out / "mine.txt").exists() and sum(read_objects(out).values()) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "yolo"]


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".out-") and "old" not in self.name and target == out and self.parent == tmp_path:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk full"), complete_folder(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "mine.txt").exists()


@pytest.mark.parametrize("out", ["yolo", "yolo/out", "."])
def test_a_folder_inside_the_source_or_around_it_is_refused(
    out: str, yolo: Callable[..., Path], tmp_path: Path, console: Console
) -> None:
    with pytest.raises(InvalidValue, match="outside the source"):
        import_data(yolo(), tmp_path / out, ImportOptions(overwrite=True), console)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / "import_data.py"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_takes_every_option(yolo: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = (
        "--overwrite --val-fraction 0.5 --seed 1 --link --format yolo --on-bad-annotation drop --classes cat x=dog"
    )
    process = start(yolo(bad_line="9 9\n"), "--out", out, *options.split())
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert Counter((key[0], key[2]) for key in read_objects(out)) == {
        (split, name): 5 * (2 if name == "cat" else 1) for split in ("train", "val") for name in ("cat", "x")
    }
    assert "images" in printed and all(path.is_symlink() for path in out.rglob("*.png"))


def test_ctrl_c_leaves_nothing(yolo: Callable[..., Path], tmp_path: Path) -> None:
    source = yolo()
    for i in range(20, 3000):
        os.link(source / "00.png", source / f"{i}.png")
    process = start(source, "--out", tmp_path / "out", "--val-fraction", "0")
    while process.poll() is None and not list(tmp_path.glob(".out-*/train/*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]
