"""The reader: files of other kinds, names of images, box formats, classes, and run lengths against pycocotools."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from tests.claims import claiming
from tests.tools.annotations.faulty import HEIGHT, WIDTH
from tools.annotations.entries import Malformed
from tools.annotations.findings import BadAnnotations, Findings
from tools.annotations.json_file import Rle
from tools.annotations.outlines import box_of_runs, decode_runs
from tools.annotations.reader import ReadOptions, read_annotations
from tools.annotations.table import AnnotationTable

SQUARE = [8.0, 8.0, 28.0, 8.0, 28.0, 24.0, 8.0, 24.0]
BASE: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT}],
    "categories": [{"id": 1, "name": "a"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 16], "iscrowd": 0, "segmentation": [SQUARE]}
    ],
}
Reads = Callable[..., AnnotationTable]


@pytest.fixture
def read(tmp_path: Path) -> Reads:
    """A function that reads the base with some parts replaced, from a file with a folder of one image."""
    folder = tmp_path / "train"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "1.png")

    def make(options: ReadOptions = ReadOptions(), **parts: Any) -> AnnotationTable:  # noqa: B008
        (tmp_path / "instances.json").write_text(json.dumps({**copy.deepcopy(BASE), **parts}))
        return read_annotations(tmp_path / "instances.json", folder, options)

    return make


def objects(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**BASE["annotations"][0], "id": i, **change} for i, change in enumerate(changes, 1)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "is an HTML page"),
        (b"PK\x03\x04abc", "archive"),
        (b'{"images": [', "is not complete JSON"),
        (b"[" * 100_000, "is not complete JSON"),
        (b"[]", "holds a list, as result files do"),
        (b"5", "holds a int"),
        (json.dumps(BASE).replace('"a"', '"\xe9"').encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(data)
    with pytest.raises(BadAnnotations, match=f"instances.json.*{message}"):
        read_annotations(path)


def test_a_byte_order_mark_is_skipped_and_said(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(BASE).encode())
    table = read_annotations(path)
    assert len(table.rows) == 1 and "byte order mark" in table.findings.lines()[0]


def test_every_finding_of_a_kind_is_counted_in_one_pass_with_three_examples(read: Reads) -> None:
    bad = [{"bbox": [1, 2]}] * 5 + [{"segmentation": [[1, 2, 3, 4, 5]]}] * 2 + [{"category_id": 9}] + [{}]
    with pytest.raises(BadAnnotations) as refused:
        read(ReadOptions(masks=True), annotations=objects(*bad))
    message = str(refused.value)
    assert "5 objects: bbox that is no list of four numbers (annotation 1: [1, 2]; annotation 2: [1, 2];" in message
    assert "2 objects: polygon with an odd number of values (annotation 6" in message
    assert "1 object: annotation of a category that the file does not list (annotation 8: category 9)" in message


def test_images_are_found_by_the_longest_ending_and_only_inside_the_folder(tmp_path: Path) -> None:
    for name in ("a/left/1.png", "a/right/1.png", "b/Ü 2.PNG"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")

    def path_of(name: str, **options: Any) -> str:
        content = copy.deepcopy(BASE)
        content["images"][0]["file_name"] = name
        table = read_annotations(content, tmp_path / "train", ReadOptions(**options))
        return table.paths[0].resolve().relative_to(tmp_path.resolve()).as_posix()

    assert path_of("/home/me/right/1.png") == "train/a/right/1.png"
    assert path_of("C:\\data\\left\\1.png") == "train/a/left/1.png"
    assert path_of("http://host/b/%C3%9C%202.png?size=2") == "train/b/Ü 2.PNG"
    assert path_of("../secret.png", outside_images=True) == "secret.png"
    with pytest.raises(BadAnnotations, match=r"1 names leave the folder.*data.outside_images: true"):
        path_of("../secret.png")
    with pytest.raises(BadAnnotations, match="fits several files.*1.png: a/left/1.png, a/right/1.png"):
        path_of("1.png")
    with pytest.raises(BadAnnotations, match="the file lists URLs for 1 of them"):
        path_of("http://host/3.png")


def test_images_above_the_limit_are_refused_before_the_first_step_and_the_named_setting_reads_them(
    tmp_path: Path,
) -> None:
    for number, size in ((1, (64, 48)), (2, (80, 60))):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 30, 30]} for i in (1, 2)],
    }
    with pytest.raises(BadAnnotations, match=r"more than 0.004799 megapixels \(image 2: 80x60, 2.png\).*max_image_mpx"):
        read_annotations(content, tmp_path, ReadOptions(max_image_px=4799))
    table = read_annotations(content, tmp_path, ReadOptions(max_image_px=4799, on_bad_image="skip"))
    assert table.image_ids == (1,) and table.findings.count("dropped", "image") == 1
    assert read_annotations(content, tmp_path, ReadOptions(max_image_px=4800)).image_ids == (1, 2)


def test_an_image_of_more_pixels_than_pillow_opens_is_called_too_large(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(claiming(100_000, 100_000))
    content = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 30, 30]}],
    }
    with pytest.raises(BadAnnotations, match=r"image of more than 179 megapixels \(image 1: 100000x100000, 1.png\)"):
        read_annotations(content, tmp_path)


def test_images_that_are_missing_or_of_another_size_are_listed_together_or_left_out(read: Reads) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, 6)]
    images.append({"id": 6, "file_name": "1.png", "width": HEIGHT, "height": WIDTH})
    annotations = objects({}, *({"image_id": i} for i in (2, 3, 4, 6)))
    with pytest.raises(BadAnnotations) as refused:
        read(images=images, annotations=annotations)
    assert "4 images: image file missing" in str(refused.value) and "(of 6)" in str(refused.value)
    assert "1 image: image of another size than its annotations (image 6: " in str(refused.value)
    table = read(ReadOptions(on_bad_image="skip"), images=images, annotations=annotations)
    assert table.image_ids == (1,) and len(table.rows) == 1
    assert (table.findings.count("dropped", "image"), table.findings.count("dropped")) == (5, 4)


@pytest.mark.parametrize("box_format", ["xyxy", "cxcywh", "xywh_fraction", "xyxy_fraction", "cxcywh_fraction"])
def test_boxes_of_another_format_are_refused_by_its_name_and_read_by_the_setting(box_format: str, read: Reads) -> None:
    def written(x: float, y: float, w: float, h: float) -> list[float]:
        sides = [WIDTH, HEIGHT] * 2 if box_format.endswith("fraction") else [1] * 4
        kinds = {"xyxy": [x, y, x + w, y + h], "cxcywh": [x + w / 2, y + h / 2, w, h], "xywh": [x, y, w, h]}
        return [v / side for v, side in zip(kinds[box_format.split("_")[0]], sides)]

    boxes = [(8.0, 8.0, 20.0, 16.0), (2.0, 3.0, 30.0, 20.0), (30.0, 20.0, 30.0, 25.0)]
    changes = [
        {"bbox": written(x, y, w, h), "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for x, y, w, h in boxes
    ]
    with pytest.raises(BadAnnotations, match=f"of them fit if read as {box_format}: set data.box_format: {box_format}"):
        read(annotations=objects(*changes))
    table = read(ReadOptions(box_format=box_format), annotations=objects(*changes))  # type: ignore[arg-type]
    assert np.abs(table.boxes - np.array(boxes)).max() < 1e-9
    few = objects(*changes[:1], *({} for _ in range(3)))
    assert any("box and outline disagree" in line for line in read(annotations=few).findings.lines())


def test_corners_are_recognised_without_outlines_too(read: Reads) -> None:
    corners = [{"bbox": [30, 20, 60, 40], "segmentation": None}, {"bbox": [40, 4, 60, 46], "segmentation": None}]
    with pytest.raises(BadAnnotations, match="fits if read as corners.*data.box_format: xyxy"):
        read(annotations=objects(*corners))


def test_classes_are_selected_and_merged_in_the_order_of_the_setting(read: Reads) -> None:
    categories = [{"id": 5, "name": "car"}, {"id": 2, "name": "truck"}, {"id": 9, "name": "dog"}]
    annotations = objects({"category_id": 5}, {"category_id": 2}, {"category_id": 9})
    parts = {"categories": categories, "annotations": annotations}
    table = read(ReadOptions(classes={"dog": ("dog",), "vehicle": ("car", "truck")}), **parts)
    assert table.class_names == ("dog", "vehicle") and table.labels[table.rows].tolist() == [1, 1, 0]
    table = read(ReadOptions(classes={"car": ("car",)}), **parts)
    assert table.class_names == ("car",) and len(table.rows) == 1 and table.findings.count("dropped") == 2
    with pytest.raises(BadAnnotations, match="class of data.classes that the file does not have .'cat'.: did you mean"):
        read(ReadOptions(classes={"cat": ("cat",)}), **parts)


def test_text_ids_are_kept_in_the_results(read: Reads) -> None:
    images = [{**BASE["images"][0], "id": "img_1"}]
    categories = [{"id": "cat", "name": "a"}]
    table = read(images=images, categories=categories, annotations=objects({"image_id": "img_1", "category_id": "cat"}))
    (annotation,) = table.to_coco()["annotations"]
    assert (annotation["image_id"], annotation["category_id"]) == ("img_1", "cat")


@st.composite
def bitmaps(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(bits, dtype=np.uint8).reshape(height, width, order="F")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(bits=bitmaps())
def test_run_lengths_and_their_boxes_are_those_of_pycocotools(bits: np.ndarray) -> None:
    height, width = bits.shape
    compressed = coco.encode(np.asfortranarray(bits))
    runs = decode_runs(Rle(compressed["counts"].decode(), (height, width)), height, width)
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width, order="F")
    assert (values == bits).all()
    again = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    assert again["counts"] == compressed["counts"]
    box = box_of_runs(runs, height)
    assert (box is None) == (not bits.any())
    if box is not None:
        assert list(box) == coco.toBbox(compressed).tolist()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(max_size=20))
def test_damaged_run_lengths_are_refused_and_never_read_beyond_their_end(text: str) -> None:
    try:
        runs = decode_runs(Rle(text, (5, 7)), 5, 7)
    except Malformed:
        return
    assert int(runs.sum()) == 35


def test_every_object_of_real_images_is_as_pycocotools_has_it(coco_mini: Path) -> None:
    path = coco_mini / "annotations" / "instances_val2017.json"
    table = read_annotations(path, coco_mini / "val2017", ReadOptions(masks=True, crowds="crowds"))
    theirs = COCO(path)
    assert table.findings.lines() == [] and len(table.rows) == len(theirs.anns)
    for row, image in zip(table.rows.tolist(), table.images_of_rows().tolist()):
        annotation = theirs.anns[table.object_ids[row]]
        assert table.boxes[row].tolist() == annotation["bbox"] and table.areas[row] == annotation["area"]
        assert table.segmentation(row, image) == annotation["segmentation"]
        assert table.crowd[row] == annotation["iscrowd"] and table.image_ids[image] == annotation["image_id"]


def test_what_a_conversion_refused_stops_the_reader_or_is_counted_by_the_setting() -> None:
    def found() -> Findings:
        findings = Findings("a folder")
        findings.add("refused", "line without a class", entry="a.txt:3", fix="add it", count=2)
        return findings

    with pytest.raises(BadAnnotations, match="a folder cannot be used:\n  2 objects: line without a class"):
        read_annotations(BASE, None, findings=found())
    table = read_annotations(BASE, None, ReadOptions(on_bad_annotation="drop"), findings=found())
    assert (table.objects_in_file, len(table.rows), table.findings.count("dropped")) == (3, 1, 2)
