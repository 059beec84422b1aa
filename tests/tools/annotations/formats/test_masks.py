"""Masks: what their values mean is decided as documented, and every object has its exact pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import Split, read_folder

PICTURE = (64, 48)


def encoded(values: Any, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def numbered(count: int, first: int = 1, dtype: Any = np.uint8) -> np.ndarray:
    """Objects of 5 x 6 pixels that touch, in a row, with consecutive numbers."""
    values = np.zeros((48, 64), dtype)
    for i in range(count):
        values[3:8, 6 * i : 6 * i + 6] = first + i
    return values


def masks_of(split: Split) -> dict[str, list[tuple[str, np.ndarray]]]:
    assert split.content is not None
    names = {c["id"]: c["name"] for c in split.content["categories"]}
    found: dict[str, list[tuple[str, np.ndarray]]] = {image["file_name"]: [] for image in split.content["images"]}
    for entry in split.content["annotations"]:
        name = split.content["images"][entry["image_id"] - 1]["file_name"]
        mask = coco_mask.decode(entry["segmentation"]).astype(bool)
        rows, columns = np.where(mask)
        assert entry["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert entry["area"] == mask.sum()
        found[name].append((names[entry["category_id"]], mask))
    return found


NUMBERS = {
    "grey PNG": lambda values: encoded(values),
    "palette PNG": lambda values: encoded(values, mode="P"),
    "16-bit PNG": lambda values: encoded(values.astype(np.uint16) * 300),
    "16-bit TIFF": lambda values: encoded(values.astype(np.uint16) * 300, "TIFF"),
    "32-bit TIFF": lambda values: encoded(values.astype(np.int32) * 70_000, "TIFF"),
    "float TIFF": lambda values: encoded(values.astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("write", NUMBERS.values(), ids=NUMBERS)
def test_object_numbers_give_touching_objects_apart(write: Any, folder: Any) -> None:
    files: dict[str, Any] = {f"images/{i}.png": PICTURE for i in range(3)}
    for i in range(3):
        files[f"masks/{i}.{'tif' if write in list(NUMBERS.values())[3:] else 'png'}"] = write(numbered(i))
    data = read_folder(folder(files))
    assert data.format == "mask images" and "every value but 0 in a mask is one object" in data.notes
    found = masks_of(data.splits["all"])
    assert {name: len(masks) for name, masks in found.items()} == {"0.png": 0, "1.png": 0 + 1, "2.png": 2}
    for value, (label, mask) in enumerate(found["2.png"], 1):
        assert label == "object" and (mask == (numbered(2) == value)).all()


@pytest.mark.parametrize("values", [numbered(5), numbered(5) * 50], ids=["1..5", "50..250"])
def test_object_numbers_that_jpeg_has_blurred_are_refused(values: np.ndarray, folder: Any) -> None:
    files = {"images/a.png": PICTURE, "images/b.png": PICTURE, "masks/b.png": encoded(numbered(2))}
    split = read_folder(folder({**files, "masks/a.jpg": encoded(values, "JPEG")})).splits["all"]
    with pytest.raises(BadAnnotations, match="masks/a.jpg.*export them as PNG"):
        split.findings.raise_if_refused()


def test_names_with_suffixes_and_splits_of_folders_are_matched(folder: Any) -> None:
    files: dict[str, Any] = {
        "train/PNGImages/a.png": PICTURE, "train/PedMasks/a_mask.png": encoded(numbered(2)),
        "test/x_img.png": PICTURE, "test/x_masks.png": encoded(numbered(3)), "test/alone.png": PICTURE,
    }  # fmt: skip
    data = read_folder(folder(files))
    assert {name: sum(map(len, masks_of(split).values())) for name, split in data.splits.items()} == {
        "train": 2,
        "test": 3,
    }
    assert any("1 images are not used" in note for note in data.notes)


def test_one_file_per_object_may_overlap(folder: Any) -> None:
    """The layout of the Data Science Bowl 2018."""
    first, second = numbered(1).astype(bool), numbered(1).T[:48].astype(bool)
    second = np.pad(second, ((0, 0), (0, 64 - second.shape[1])))
    files: dict[str, Any] = {"stage1_train/ab/images/ab.png": PICTURE, "stage1_train/cd/images/cd.png": PICTURE}
    for name, mask in (
        ("ab/masks/1", first),
        ("ab/masks/2", second),
        ("ab/masks/3", first & False),
        ("cd/masks/9", first),
    ):
        files[f"stage1_train/{name}.png"] = encoded(mask.astype(np.uint8) * 255)
    data = read_folder(folder(files))
    split = data.splits["train"]
    found = masks_of(split)
    assert [len(masks) for masks in found.values()] == [2, 1] and split.findings.count("dropped") == 1
    assert (found["ab/images/ab.png"][1][1] == second).all()


@pytest.mark.parametrize("kind", ["0 and 255", "0 and 1", "RGBA", "JPEG", "soft edges", "1 bit"])
def test_connected_parts_of_masks_of_two_values_are_objects(kind: str, folder: Any) -> None:
    values = np.zeros((48, 64), np.uint8)
    values[8:16, 8:24] = values[24:40, 32:56] = 255
    content, suffix = encoded(values), "png"
    if kind == "0 and 1":
        content = encoded(values // 255)
    elif kind == "RGBA":
        content = encoded(values, mode="RGBA")
    elif kind == "1 bit":
        content = encoded(values, mode="1")
    elif kind == "JPEG":
        content, suffix = encoded(values, "JPEG", quality=80), "jpg"
    elif kind == "soft edges":
        soft = np.asarray(Image.fromarray(values).resize((640, 480)).resize((64, 48), Image.Resampling.BILINEAR))
        content = encoded(soft)
    data = read_folder(folder({"images/a.png": PICTURE, f"masks/a.{suffix}": content}))
    assert any("two values" in note for note in data.notes)
    masks = [mask for _, mask in masks_of(data.splits["all"])["a.png"]]
    assert len(masks) == 2 and (np.logical_or(*masks) == (values > 0)).all()


def test_values_that_repeat_in_all_masks_are_classes(folder: Any) -> None:
    values = np.zeros((48, 64), np.uint8)
    values[1:5, 1:5], values[10:15, 1:5], values[20:30, 20:30] = 3, 3, 7
    files: dict[str, Any] = {f"{name}/{i}.png": PICTURE for name in ("images",) for i in range(6)}
    data = read_folder(folder({**files, **{f"labels/{i}.png": encoded(values) for i in range(6)}}))
    found = masks_of(data.splits["all"])
    assert [label for label, _ in found["0.png"]] == ["class 3", "class 3", "class 7"]
    assert any("are classes" in note for note in data.notes)


def test_colours_are_classes(folder: Any) -> None:
    values = np.zeros((48, 64, 3), np.uint8)
    values[1:5, 1:5], values[20:30, 20:30] = (255, 0, 0), (0, 128, 255)
    data = read_folder(folder({"images/a.png": PICTURE, "masks/a.png": encoded(values)}))
    assert [label for label, _ in masks_of(data.splits["all"])["a.png"]] == ["colour #0080ff", "colour #ff0000"]


def test_the_border_of_pascal_voc_is_no_object(folder: Any) -> None:
    values = numbered(2)
    values[8:10, :12] = 255
    data = read_folder(folder({"images/a.png": PICTURE, "masks/a.png": encoded(values)}))
    assert len(masks_of(data.splits["all"])["a.png"]) == 2
    assert data.splits["all"].findings.count("note", "file") == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"no image", "cannot identify"),
        (encoded(np.ones((24, 32), np.uint8)), "32x24, the image 64x48"),
        (encoded(np.full((48, 64), 0.5, np.float32), "TIFF"), "not whole numbers"),
        (
            encoded(np.zeros((48, 64), np.uint8), "TIFF", save_all=True, append_images=[Image.new("L", PICTURE)]),
            "2 pages",
        ),
    ],
    ids=["no image", "size", "fractions", "pages"],
)
def test_bad_masks_are_refused_by_name_and_the_others_kept(bad: bytes, message: str, folder: Any) -> None:
    files = {"images/a.png": PICTURE, "images/b.png": PICTURE, "masks/a.png": encoded(numbered(2)), "masks/b.tif": bad}
    split = read_folder(folder(files)).splits["all"]
    assert len(masks_of(split)["a.png"]) == 2
    with pytest.raises(BadAnnotations, match=f"masks/b.tif.*{message}"):
        split.findings.raise_if_refused()


def test_object_and_class_masks_of_pascal_voc_without_xml_are_read_together(folder: Any) -> None:
    """As labelme2voc writes them: numbers may be missing, and pictures for people lie beside the masks."""
    objects, classes = numbered(4), numbered(4)
    objects[objects == 2] = 0
    classes[classes > 0] = 5
    classes[objects == 4] = 1
    objects[9:11, :12] = classes[9:11, :12] = 255
    files: dict[str, Any] = {"class_names.txt": "_background_\ncat\n", "JPEGImages/a.png": PICTURE}
    for name, values in (("Object", objects), ("Class", classes)):
        files[f"Segmentation{name}/a.png"] = encoded(values)
        files[f"Segmentation{name}Visualization/a.jpg"] = encoded(values, "JPEG")
    found = masks_of(read_folder(folder(files)).splits["all"])
    assert [label for label, _ in found["a.png"]] == ["class 5", "class 5", "cat"]
    assert all((mask == (objects == value)).all() for value, (_, mask) in zip((1, 3, 4), found["a.png"]))


def test_class_masks_of_pascal_voc_leave_the_border_out(folder: Any) -> None:
    values = np.zeros((48, 64), np.uint8)
    values[3:8, 3:8], values[9:12, 3:8] = 5, 255
    files = {"JPEGImages/a.png": PICTURE, "SegmentationClass/a.png": encoded(values)}
    data = read_folder(folder({**files, "class_names.txt": "_background_\n\n\n\n\nbottle\n"}))
    assert [label for label, _ in masks_of(data.splits["all"])["a.png"]] == ["bottle"]


def test_masks_in_several_folders_are_an_error_that_names_them(folder: Any) -> None:
    files = {f"masks/{name}/a.png": encoded(numbered(2)) for name in ("first", "second")}
    with pytest.raises(BadAnnotations, match="several folders .masks/first, masks/second.: keep one"):
        read_folder(folder({"images/a.png": PICTURE, **files}))


def test_numbers_in_many_pieces_are_classes(folder: Any) -> None:
    """Two classes, 1 in all masks and 2 in some, with several objects each."""
    files: dict[str, Any] = {}
    for i in range(6):
        values = np.zeros((48, 64), np.uint8)
        values[5:10, 5:10] = values[5:10, 15:20] = values[5:10, 25:30] = 1
        values[20:25, 5:10] = values[20:25, 15:20] = 2 * (i % 2)
        files |= {f"images/{i}.png": PICTURE, f"masks/{i}.png": encoded(values)}
    found = masks_of(read_folder(folder(files)).splits["all"])
    assert [label for label, _ in found["1.png"]] == ["class 1"] * 3 + ["class 2"] * 2
