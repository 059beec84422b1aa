"""DOTA: quadrilaterals with their enclosing boxes, and lines that are wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tools.annotations.findings import BadAnnotations
from tools.annotations.formats import read_folder

PICTURE = (64, 48)
HEADER = "imagesource:GoogleEarth\r\ngsd:0.146\r\n"
LINE = "10.0 5.0 30.0 15.0 25.0 25.0 5.0 15.0 small-vehicle 0\r\n"


def test_boxes_enclose_the_quadrilaterals_which_are_the_outlines(folder: Any, objects: Any) -> None:
    files = {f"{s}/images/P{i}.png": PICTURE for i, s in enumerate(("train", "val"))}
    files["train/labelTxt/P0.txt"] = HEADER + LINE + "1 1 4 1 4 4 1 4 ship 1\r\n"  # type: ignore[assignment]
    files["val/labelTxt-v1.5/DOTA-v1.5_val/P1.txt"] = HEADER  # type: ignore[assignment]
    data = read_folder(folder(files))
    assert data.format == "DOTA" and "enclose" in data.notes[1]
    assert objects(data.splits["train"]) == {"P0.png": [("small-vehicle", 5, 5, 25, 20), ("ship", 1, 1, 3, 3)]}
    assert objects(data.splits["val"]) == {"P1.png": []}
    assert data.splits["train"].content is not None
    vehicle, ship = data.splits["train"].content["annotations"]
    assert vehicle["segmentation"] == [[10, 5, 30, 15, 25, 25, 5, 15]] and "ignore" not in vehicle
    assert ship["ignore"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        "10 5 30 15 25 25 5 small-vehicle 0",
        "10 5 30 15 25 nan 5 15 ship 0",
        "10 5 30 15 25 25 5 15",
        "10 5 30 15 25 25 5 15 two words 0",
        "a b c",
    ],
)
def test_bad_lines_are_refused_with_file_and_line_and_the_others_kept(bad: str, folder: Any, objects: Any) -> None:
    flat = "1 1 4 1 8 1 9 1 ship 0"
    split = read_folder(folder({"a.png": PICTURE, "a.txt": f"{HEADER}{LINE}{bad}\n{flat}\n"})).splits["all"]
    assert len(objects(split)["a.png"]) == 1 and split.findings.count("dropped") == 1
    with pytest.raises(BadAnnotations, match=r"a\.txt:4"):
        split.findings.raise_if_refused()


def test_missing_images_are_refused_with_their_objects_counted(folder: Any) -> None:
    files = {"images/a.png": PICTURE, "labelTxt/a.txt": LINE, "labelTxt/b.txt": LINE + LINE}
    split = read_folder(folder(files)).splits["all"]
    assert split.findings.count("refused", "image") == 1 and split.findings.count("dropped") == 2
