"""VIA: both versions, all shapes, the attribute that is the class, and regions that are wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder

PICTURE = (64, 48)
POLYGON = {"name": "polygon", "all_points_x": [10, 30, 30], "all_points_y": [5, 5, 25]}
RECT = {"name": "rect", "x": 3, "y": 4, "width": 10, "height": 6}


def entry(name: str, *regions: dict[str, Any], as_dict: bool = False) -> dict[str, Any]:
    listed: Any = {str(i): region for i, region in enumerate(regions)} if as_dict else list(regions)
    return {"filename": name, "size": 1234, "regions": listed, "file_attributes": {}}


def region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def export(*entries: dict[str, Any]) -> str:
    return json.dumps({f"{e['filename']}{e['size']}": e for e in entries})


def project(*entries: dict[str, Any], attributes: dict[str, Any]) -> str:
    content = {"_via_settings": {}, "_via_img_metadata": json.loads(export(*entries))}
    return json.dumps({**content, "_via_attributes": {"region": attributes, "file": {}}})


def test_regions_as_dict_without_attributes_are_one_class_per_split_folder(folder: Any, objects: Any) -> None:
    files = {f"{s}/{n}.png": PICTURE for s, n in (("train", "a"), ("val", "b"))}
    for split, name in (("train", "a.png"), ("val", "b.png")):
        files[f"{split}/via_region_data.json"] = export(entry(name, region(POLYGON), as_dict=True))  # type: ignore[assignment]
    data = read_folder(folder(files))
    assert data.format == "VIA" and any('one class, "object"' in note for note in data.notes)
    assert objects(data.splits["train"]) == {"a.png": [("object", 10, 5, 20, 20)]}
    assert objects(data.splits["val"]) == {"b.png": [("object", 10, 5, 20, 20)]}


def test_a_project_with_all_shapes_is_read_and_lines_and_points_are_counted(folder: Any) -> None:
    shapes = [
        RECT,
        POLYGON,
        {"name": "circle", "cx": 20, "cy": 20.5, "r": 8},
        {"name": "ellipse", "cx": 30, "cy": 20, "rx": 10, "ry": 5, "theta": math.pi / 2},
        {"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]},
        {"name": "point", "cx": 1, "cy": 1},
        {"name": "point", "cx": 2, "cy": 1},
    ]
    regions = [region(shape, kind="cat", occluded={"yes": True}) for shape in shapes]
    attributes = {"kind": {"type": "dropdown", "options": {"cat": ""}}, "occluded": {"type": "checkbox"}}
    text = project(entry("a.png", *regions), entry("b.png"), attributes=attributes)
    split = read_folder(folder({"a.png": PICTURE, "b.png": PICTURE, "via_project.json": text})).splits["all"]
    assert split.content is not None and len(split.content["images"]) == 2
    assert split.content["categories"] == [{"id": 1, "name": "cat"}]
    rect, polygon, circle, ellipse = split.content["annotations"]
    assert rect["bbox"] == [3, 4, 10, 6] and "segmentation" not in rect
    assert polygon["segmentation"] == [[10, 5, 30, 5, 30, 25]]
    assert circle["bbox"] == pytest.approx([12, 12.5, 16, 16])
    assert ellipse["bbox"] == pytest.approx([25, 10, 10, 20])
    points = list(zip(circle["segmentation"][0][0::2], circle["segmentation"][0][1::2]))
    assert all(math.hypot(x - 20, y - 20.5) == pytest.approx(8) for x, y in points)
    assert split.findings.count("dropped") == 3


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"species": "cat"}, "cat"),
        ({"class": "cat", "colour": "red"}, "cat"),
        ({"animal": {"cat": True, "dog": False}}, "cat"),
        ({"number": 7}, "7"),
    ],
)
def test_the_class_is_the_only_attribute_or_the_one_with_a_usual_name(
    attributes: dict[str, Any], expected: str, folder: Any, objects: Any
) -> None:
    data = read_folder(folder({"a.png": PICTURE, "v.json": export(entry("a.png", region(RECT, **attributes)))}))
    assert objects(data.splits["all"])["a.png"][0][0] == expected
    assert f'"{next(iter(attributes))}" is the class' in data.notes[0]


def test_several_attributes_that_may_be_the_class_are_an_error(folder: Any) -> None:
    text = export(entry("a.png", region(RECT, genus="x", colour="red")))
    with pytest.raises(BadAnnotations, match="attributes colour, genus.*rename the right one"):
        read_folder(folder({"a.png": PICTURE, "v.json": text}))


BAD_REGIONS: dict[str, Any] = {
    "no class": region(RECT, kind=""),
    "class missing": region(RECT),
    "several classes": region(RECT, kind={"cat": True, "dog": True}),
    "no shape": {"region_attributes": {"kind": "cat"}},
    "number missing": region({"name": "rect", "x": 1, "y": 2, "width": 3}, kind="cat"),
    "text": region({**RECT, "x": "left"}, kind="cat"),
    "not finite": region({**RECT, "width": float("inf")}, kind="cat"),
    "unequal lists": region({**POLYGON, "all_points_x": [1, 2]}, kind="cat"),
    "NaN in a polygon": region({**POLYGON, "all_points_x": [1, 2, float("nan")]}, kind="cat"),
    "unknown shape": region({"name": "star"}, kind="cat"),
    "no region": "region",
}


@pytest.mark.parametrize("bad", BAD_REGIONS.values(), ids=BAD_REGIONS)
def test_bad_regions_are_refused_by_image_and_number_and_the_others_kept(bad: Any, folder: Any, objects: Any) -> None:
    text = export(entry("a.png", region(RECT, kind="cat"), bad))
    split = read_folder(folder({"a.png": PICTURE, "v.json": text})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("refused") == 1
    with pytest.raises(BadAnnotations, match="a.png, region 2"):
        split.findings.raise_if_refused()


def test_regions_without_area_are_dropped(folder: Any, objects: Any) -> None:
    flat = [{**RECT, "width": 0}, {**POLYGON, "all_points_x": [1, 1, 1]}, {"name": "circle", "cx": 1, "cy": 1, "r": 0}]
    text = export(entry("a.png", region(RECT), *(region(shape) for shape in flat)))
    split = read_folder(folder({"a.png": PICTURE, "v.json": text})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("dropped") == 3


def test_missing_and_repeated_images_are_refused_with_their_objects_counted(folder: Any) -> None:
    content = json.loads(export(entry("a.png", region(RECT)), entry("gone.png", region(RECT), region(RECT))))
    content["again"] = entry("a.png", region(RECT))
    split = read_folder(folder({"x/a.png": PICTURE, "v.json": json.dumps(content)})).splits["all"]
    assert split.findings.count("refused", "image") == 2 and split.findings.count("dropped") == 3
    assert split.content is not None and len(split.content["annotations"]) == 1


def test_two_files_without_a_split_in_their_names_are_an_error(folder: Any) -> None:
    text = export(entry("a.png", region(RECT)))
    with pytest.raises(BadAnnotations, match="several VIA files \\(one.json, two.json\\)"):
        read_folder(folder({"a.png": PICTURE, "one.json": text, "two.json": text}))
