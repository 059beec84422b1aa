"""Any fault in any file gives findings or one UserError: never a traceback."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_backbone.errors import UserError
from tools.annotations.formats import read_folder

XML = (
    "<annotation><filename>a.png</filename><size><width>64</width><height>48</height></size><object><name>cat</name>"
    "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
POLYGON = {"name": "polygon", "all_points_x": [10, 30, 30], "all_points_y": [5, 5, 25]}
VIA = {
    "_via_attributes": {"region": {"kind": {"type": "dropdown", "options": {"cat": ""}}}},
    "_via_img_metadata": {
        "a.png1": {
            "filename": "a.png",
            "size": 1,
            "regions": [{"shape_attributes": POLYGON, "region_attributes": {"kind": "cat"}}],
            "file_attributes": {},
        }
    },
}
LABELME = {
    "shapes": [
        {"label": "cat", "points": [[1, 2], [3, 4], [3, 9]], "group_id": 1, "shape_type": "polygon"},
        {"label": "cat", "points": [[1, 2], [3, 4]], "group_id": 1, "shape_type": "circle"},
        {"label": "cat", "points": [[1, 2], [3, 4]], "mask": "iVBORw0KGgo=", "shape_type": "mask"},
    ],
    "imagePath": "a.png",
    "imageData": None,
    "imageHeight": 48,
    "imageWidth": 64,
}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 1, "name": "cat"}],
}
YOLO = "path: x\ntrain: a.png\nval:\n  - .\nnames:\n  0: cat\n  1: dog\nkpt_shape: [1, 2]\n"
CSV = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64,48,cat,8,12,24,36\n"
CVAT = (
    '<annotations><meta><label><name>cat</name></label></meta><image name="a.png"><box label="cat" xtl="8" ytl="4" '
    'xbr="20" ybr="30" rotation="3"/><mask label="cat" rle="1, 2, 2, 1" left="7" top="8" width="3" height="2"/></image>'
    "</annotations>"
)
TEXTS = {
    "a.xml": XML,
    "annotations.xml": CVAT,
    "data.yaml": YOLO,
    "a.txt": "0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.2 0.1 0.2 0.2\n",
    "labelTxt/a.txt": "imagesource:x\n1 1 4 1 4 4 1 4 ship 1\n",
    "t.csv": CSV,
    "v.csv": 'image,region_shape_attributes,region_attributes\na.png,"{""name"": ""rect"", ""x"": 1}","{""k"": 1}"\n',
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(max_size=3), child, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def nodes(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in JSON's content."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(found for key, value in items for found in nodes(value, (*path, key)))]


def read_with(root: Path, name: str, data: bytes) -> None:
    """Read a folder with one picture and this file; a UserError is as right as a result."""
    shutil.rmtree(root)
    (root / name).parent.mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(root / "a.png")
    (root / name).write_bytes(data)
    try:
        folder = read_folder(root)
    except UserError:
        return
    for split in folder.splits.values():
        assert all(split.findings.lines())
        for entry in (split.content or {}).get("annotations", []):
            assert len(entry["bbox"]) == 4 and min(entry["bbox"][2:]) > 0
            assert abs(sum(entry["bbox"])) < float("inf")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(base=st.sampled_from([VIA, LABELME, COCO]), node=st.integers(0, 100), value=values, delete=st.booleans())
@example(LABELME, 7, {"a": 1}, False)
def test_any_value_in_a_json_file_may_be_wrong(root: Path, base: Any, node: int, value: Any, delete: bool) -> None:
    content = copy.deepcopy(base)
    paths = nodes(content)
    path = paths[node % len(paths)]
    if not path:
        content = value
    else:
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        if delete:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
    read_with(root, "a.json", json.dumps(content).encode())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(TEXTS)),
    at=st.integers(0, 400),
    length=st.integers(0, 12),
    piece=st.binary(max_size=4) | st.sampled_from([b"nan", b"1e999", b"-1", b"\0", b"\xff", b"[", b"&a;", b"*x", b'"']),
)
def test_any_bytes_in_a_text_file_may_be_wrong(root: Path, name: str, at: int, length: int, piece: bytes) -> None:
    data = TEXTS[name].encode()
    at %= len(data)
    read_with(root, name, data[:at] + piece + data[at + length :])
