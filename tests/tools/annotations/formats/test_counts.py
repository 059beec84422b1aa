"""Objects in = objects used + objects reported as dropped or refused, for any mixture of good and bad ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.tools.annotations.formats import test_csv_boxes, test_labelme, test_via, test_voc, test_yolo
from tools.annotations.formats import read_folder

NAMES_THE_CLASS = test_via.region(test_via.RECT, kind="x")


class Kind(NamedTuple):
    """A format: a good object of a given size, the bad ones, and the files that hold the objects of one image."""

    good: Callable[[int], Any]
    bad: list[Any]
    files: Callable[[list[Any]], dict[str, str]]


KINDS = {
    "voc": Kind(
        lambda n: test_voc.xml_object((1, 1, n, n)),
        [*test_voc.BAD_OBJECTS.values(), test_voc.xml_object((9, 9, 1, 1))],
        lambda objects: {"a.xml": test_voc.xml(*objects)},
    ),
    "yolo": Kind(
        lambda n: f"0 0.5 0.5 {n / 64} {n / 48}",
        [*test_yolo.BAD_LINES.values(), "0 0.5 0.5 0 0.1"],
        lambda objects: {
            "a.txt": "\n".join(objects),
            "b.txt": "0 0.5 0.5 0.5 0.5",
            "classes.txt": "cat\ndog\n",
        },
    ),
    "via": Kind(
        lambda n: test_via.region({"name": "rect", "x": 1, "y": 1, "width": n, "height": n}, kind="cat"),
        [*test_via.BAD_REGIONS.values(), test_via.region({"name": "point", "cx": 1, "cy": 1}, kind="cat")],
        lambda objects: {"v.json": test_via.export(test_via.entry("a.png", NAMES_THE_CLASS, *objects))},
    ),
    "labelme": Kind(
        lambda n: test_labelme.shape([[1, 1], [1 + n, 1], [1 + n, 1 + n]]),
        [*test_labelme.BAD_SHAPES.values(), test_labelme.shape([[1, 1]], kind="point")],
        lambda objects: {"a.json": test_labelme.labelme(*objects)},
    ),
    "csv": Kind(
        lambda n: f"a.png,1,1,{1 + n},{1 + n},cat",
        [*test_csv_boxes.BAD_ROWS.values(), "a.png,5,5,1,1,cat", "gone.png,1,1,2,2,cat"],
        lambda objects: {"t.csv": "\n".join(["a.png,,,,,", *objects])},
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counts")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(KINDS)),
    picks=st.lists(st.one_of(st.integers(1, 20), st.integers(-50, -1)), max_size=12),
)
def test_no_object_is_lost_or_made_up(root: Path, name: str, picks: list[int]) -> None:
    """A pick above 0 is a good object of that size, one below 0 a bad one."""
    kind = KINDS[name]
    shutil.rmtree(root)
    root.mkdir()
    for picture in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(root / picture)
    objects = [kind.good(pick) if pick > 0 else kind.bad[pick % len(kind.bad)] for pick in picks]
    for file, text in kind.files(objects).items():
        (root / file).write_text(text)
    split = read_folder(root, name).splits["all"]
    assert split.content is not None
    (image_id,) = [image["id"] for image in split.content["images"] if image["file_name"] == "a.png"]
    used = [entry for entry in split.content["annotations"] if entry["image_id"] == image_id]
    extra = 1 if name == "via" else 0  # a region that names the class attribute
    assert sorted(round(entry["bbox"][2], 6) for entry in used[extra:]) == sorted(float(p) for p in picks if p > 0)
    assert len(used) - extra + split.findings.count("dropped") + split.findings.count("refused") == len(picks)
