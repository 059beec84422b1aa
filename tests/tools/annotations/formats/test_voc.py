"""Pascal VOC: corners from 1, difficult objects, masks, lists, and XML as people have it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder


def xml_object(box: tuple[Any, ...], name: str = "cat", more: str = "") -> str:
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object>\n<name>{name}</name>{more}<bndbox>{corners}</bndbox></object>\n"


def xml(*objects: str, name: str = "a.png", size: tuple[int, int] = (64, 48)) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{name}</filename>{stated}\n{''.join(objects)}</annotation>"


@given(x=st.integers(1, 60), y=st.integers(1, 44), w=st.integers(1, 4), h=st.integers(1, 4), seen=st.integers(0, 1))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_a_box_covers_its_corner_pixels_and_nothing_else(
    tmp_path: Path, x: int, y: int, w: int, h: int, seen: int
) -> None:
    """Pixels are counted from 1 and both corners belong to the object."""
    root = tmp_path / f"{x} {y} {w} {h} {seen}"
    root.mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / "a.png")
    difficult = f"<difficult>{seen}</difficult>"
    (root / "a.xml").write_text(xml(xml_object((x, y, x + w - 1, y + h - 1), more=difficult)))
    split = read_folder(root).splits["all"]
    assert split.content is not None
    (entry,) = split.content["annotations"]
    assert entry["bbox"] == [x - 1, y - 1, w, h] and entry.get("ignore", 0) == seen
    assert split.findings.count("note") == seen


def test_splits_come_from_the_lists_and_all_share_the_classes(folder: Any, objects: Any) -> None:
    files: dict[str, Any] = {f"VOC2007/JPEGImages/{i}.png": (64, 48) for i in range(5)}
    for i in range(4):
        body = xml(xml_object((1, 1, 10 + i, 10), "dog" if i == 2 else "cat"), name=f"{i}.png")
        files[f"VOC2007/Annotations/{i}.xml"] = body
    files["VOC2007/ImageSets/Main/train.txt"] = "0\r\n1 \r\n"
    files["VOC2007/ImageSets/Main/val.txt"] = "2\n4\n"
    files["VOC2007/ImageSets/Main/trainval.txt"] = "0\n1\n2\n4\n"
    files["VOC2007/ImageSets/Main/cat_train.txt"] = "3  1\n"
    data = read_folder(folder(files))
    assert data.format == "Pascal VOC" and list(data.splits) == ["train", "val"]
    assert objects(data.splits["train"]) == {"0.png": [("cat", 0, 0, 10, 10)], "1.png": [("cat", 0, 0, 11, 10)]}
    assert objects(data.splits["val"]) == {"2.png": [("dog", 0, 0, 12, 10)]}
    names = [[c["name"] for c in split.content["categories"]] for split in data.splits.values()]  # type: ignore[index]
    assert names == [["cat", "dog"]] * 2
    assert data.splits["val"].findings.count("dropped", "image") == 1  # 4 has no XML file
    assert any("1 XML files are in none of the lists" in note for note in data.notes)


def test_images_are_found_by_the_stem_of_a_file_with_a_wrong_name(folder: Any, objects: Any) -> None:
    files = {
        "images/a.png": (64, 48),
        "images/b.png": (64, 48),
        "annots/a.xml": xml(xml_object((1, 1, 5, 5)), name="b.png"),
    }
    split = read_folder(folder(files)).splits["all"]
    assert objects(split) == {"a.png": [("cat", 0, 0, 5, 5)]}
    assert split.findings.count("repaired", "image") == 1


def test_an_image_in_the_folder_of_its_split_is_preferred_to_one_of_the_same_name(folder: Any, objects: Any) -> None:
    files = {
        **{f"{split}/images/a.png": (64, 48) for split in ("train", "valid")},
        **{f"{split}/labels/a.xml": xml(xml_object((1, 1, n, n))) for split, n in (("train", 5), ("valid", 7))},
    }
    data = read_folder(folder(files))
    assert objects(data.splits["train"]) == {"a.png": [("cat", 0, 0, 5, 5)]}
    assert objects(data.splits["val"]) == {"a.png": [("cat", 0, 0, 7, 7)]}
    assert data.splits["val"].images.parent.name == "valid"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "utf-16"])
def test_names_are_read_in_any_declared_encoding(encoding: str, folder: Any, objects: Any) -> None:
    declared = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\r\n'
    text = (declared + xml(xml_object((1, 1, 5, 5), "Käfer")).replace("\n", "\r\n")).encode(encoding)
    assert objects(read_folder(folder({"a.png": (64, 48), "a.xml": text})).splits["all"])["a.png"][0][0] == "Käfer"


@pytest.mark.parametrize("dialect", ["size 0", "no size"])
def test_a_size_that_is_not_stated_is_read_from_the_upright_image(dialect: str, folder: Any) -> None:
    picture = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(picture, "JPEG", exif=exif)  # on its side
    text = xml(xml_object((1, 1, 5, 5)), name="a.jpg", size=(0, 0))
    text = text if dialect == "size 0" else text.replace("size>", "other>")
    split = read_folder(folder({"a.jpg": picture.getvalue(), "a.xml": text})).splits["all"]
    assert split.content is not None and split.findings.count("repaired", "image") == 1
    assert (split.content["images"][0]["width"], split.content["images"][0]["height"]) == (64, 48)


def test_masks_of_segmentation_object_become_the_outlines_of_the_objects_in_order(folder: Any) -> None:
    values = np.zeros((48, 64), np.uint8)
    values[4:10, 4:20], values[20:40, 30:60], values[10, 4:20] = 1, 2, 255  # 255 is the border
    mask = io.BytesIO()
    picture = Image.fromarray(values, "P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(mask, "PNG")
    files = {
        "JPEGImages/a.png": (64, 48),
        "SegmentationObject/a.png": mask.getvalue(),
        "Annotations/a.xml": xml(
            xml_object((5, 5, 20, 11)), xml_object((31, 21, 60, 40), "dog"), xml_object((1, 1, 3, 3))
        ),
    }
    split = read_folder(folder(files)).splits["all"]
    assert split.content is not None
    first, second, third = split.content["annotations"]
    for entry, value in ((first, 1), (second, 2)):
        assert (coco_mask.decode(entry["segmentation"]).astype(bool) == (values == value)).all()
        assert entry["area"] == (values == value).sum()
    assert first["bbox"] == [4, 4, 16, 7] and "segmentation" not in third


def test_a_mask_that_contradicts_its_box_is_left_out_and_said(folder: Any) -> None:
    values = np.zeros((48, 64), np.uint8)
    values[30:, 30:] = 1
    mask = io.BytesIO()
    Image.fromarray(values).save(mask, "PNG")
    files = {"JPEGImages/a.png": (64, 48), "SegmentationObject/a.png": mask.getvalue()}
    split = read_folder(folder({**files, "Annotations/a.xml": xml(xml_object((1, 1, 9, 9)))})).splits["all"]
    assert split.content is not None and "segmentation" not in split.content["annotations"][0]
    assert split.findings.count("warning") == 1


def test_rotated_boxes_and_polygons_of_other_tools_are_read(folder: Any) -> None:
    values = {"cx": 31, "cy": 21, "w": 20, "h": 10, "angle": math.pi / 2}
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    rotated = f"<object><name>a</name><robndbox>{corners}</robndbox></object>"
    polygon = "<polygon><x1>2</x1><y1>3</y1><x2>12</x2><y2>3</y2><x3>12</x3><y3>9</y3></polygon>"
    text = xml(rotated, xml_object((2, 3, 11, 8), more=polygon))
    split = read_folder(folder({"a.png": (64, 48), "a.xml": text})).splits["all"]
    assert split.content is not None
    first, second = split.content["annotations"]
    assert first["bbox"] == pytest.approx([25, 10, 11, 21])
    assert second["segmentation"] == [[1, 2, 11, 2, 11, 8]]


BAD_OBJECTS = {
    "no class": xml_object((1, 1, 5, 5), ""),
    "text": xml_object(("one", 1, 5, 5)),
    "missing corner": xml_object((1, 1, 5)),
    "not finite": xml_object((1, "nan", 5, 5)),
    "infinite": xml_object((1, 1, "inf", 5)),
    "no box": "<object><name>cat</name></object>",
}


@pytest.mark.parametrize("bad", BAD_OBJECTS.values(), ids=BAD_OBJECTS)
def test_bad_objects_are_refused_with_file_and_line_and_the_others_kept(bad: str, folder: Any, objects: Any) -> None:
    split = read_folder(folder({"a.png": (64, 48), "a.xml": xml(xml_object((1, 1, 5, 5)), bad)})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("refused") == 1
    with pytest.raises(BadAnnotations, match=r"a\.xml:5"):
        split.findings.raise_if_refused()


def test_swapped_corners_are_dropped_with_their_count(folder: Any, objects: Any) -> None:
    text = xml(xml_object((9, 1, 5, 5)), xml_object((1, 9, 5, 5)), xml_object((5, 5, 5, 5)))
    split = read_folder(folder({"a.png": (64, 48), "a.xml": text})).splits["all"]
    assert objects(split)["a.png"] == [("cat", 4, 4, 1, 1)] and split.findings.count("dropped") == 2


BAD_FILES = {
    "not well-formed": xml(xml_object((1, 1, 5, 5)))[:-5],
    "entities": '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + xml(xml_object((1, 1, 5, 5), "&b;")),
    "external entity": '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    + xml(xml_object((1, 1, 5, 5), "&a;")),
    "unknown encoding": '<?xml version="1.0" encoding="klingon"?>' + xml(),
}


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_parsed_are_refused_by_name(bad: str, folder: Any, objects: Any) -> None:
    files = {"a.png": (64, 48), "b.png": (64, 48), "a.xml": xml(xml_object((1, 1, 5, 5))), "b.xml": bad}
    split = read_folder(folder(files)).splits["all"]
    assert list(objects(split)) == ["a.png"]
    with pytest.raises(BadAnnotations, match="1 file: XML file that cannot be parsed \\(b.xml"):
        split.findings.raise_if_refused()


def test_missing_ambiguous_and_repeated_images_are_refused_with_their_objects_counted(folder: Any) -> None:
    text = xml(xml_object((1, 1, 5, 5)), xml_object((1, 1, 5, 5)))
    files = {
        "x/a.png": (64, 48),
        "y/a.png": (64, 48),
        "c.png": (64, 48),
        "c.xml": text,
        "other/c.xml": text,
        "xml/a.xml": text,
        "xml/b.xml": text.replace("a.png", "b.png"),
        "d.png": b"no image",
        "d.xml": xml(xml_object((1, 1, 5, 5)), size=(0, 0)),
    }
    split = read_folder(folder(files)).splits["all"]
    assert split.content is not None and len(split.content["annotations"]) == 2
    assert split.findings.count("refused", "image") == 4 and split.findings.count("dropped") == 2 + 2 + 2 + 1
