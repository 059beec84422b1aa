"""The 45 files of shared/cases do what is right for each, for training, scoring and the doctor alike."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tools.annotations.conftest import CASES, make_case, needs_cases
from tools.annotations.findings import BadAnnotations
from tools.annotations.reader import ReadOptions, read_annotations
from tools.annotations.table import AnnotationTable
from tools.config.detection import RunConfig
from tools.config.settings import validate
from tools.data.coco import load_coco
from tools.evaluation.scores import score_coco
from tools.jobs.doctor import check_data

pytestmark = needs_cases
MASKS = ReadOptions(masks=True)
BOX, SQUARE = [8.0, 8.0, 20.0, 16.0], [8, 8, 28, 8, 28, 24, 8, 24]
NAMED = {case["name"]: case for case in CASES["cases"]}


def names(*starts: str) -> list[str]:
    """Cases whose expectation starts with one of these words."""
    return [name for name, case in NAMED.items() if case["expect"].startswith(starts)]


WORKS = [*names("works", "the doctor scores AP 1.0"), "unused root category, as Roboflow writes"]
WORKS += ["unused root named like its only class", "all objects iscrowd 1, as CVAT writes masks"]
DEGENERATE = names("dropped with a count")
MALFORMED = [name for name in names("refused before the first step") if "on_bad_annotation" in NAMED[name]["expect"]]
REFUSED = [name for name in names("refused", "warned") if name not in MALFORMED]
DROPPED_CLASSES = names("dropped from the classes")
DEGENERATE = [name for name in DEGENERATE if name not in DROPPED_CLASSES]
parametrise = pytest.mark.parametrize


def with_a_good_object(case: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """The case, with a second image that has an object without a fault."""
    case = copy.deepcopy(case)
    images = [*CASES["base"]["images"], {"id": 2, "file_name": "2.png", "width": 64, "height": 48}]
    good = {**CASES["base"]["annotations"][0], "id": 2, "image_id": 2}
    case["top"] = {"images": images, **case.get("top", {})}
    case["more_annotations"] = [good]
    made = make_case(case, folder)
    Image.new("RGB", (64, 48)).save(made[0] / "2.png")
    return made


def read(made: tuple[Path, Path], options: ReadOptions = MASKS) -> AnnotationTable:
    return read_annotations(made[1], made[0], options)


def trained_is_scored(made: tuple[Path, Path], options: ReadOptions = MASKS) -> int:
    """Number of objects, after a check that training and scoring use the same ones."""
    data = load_coco(made[0], made[1], options)
    trained = [(r.image_id, int(label)) for r in data.records for label in r.labels]
    truth = [a for a in data.table.to_coco()["annotations"] if not a["iscrowd"]]
    assert [(a["image_id"], data.category_ids.index(a["category_id"])) for a in truth] == trained
    results = [{**a, "score": 1.0} for a in truth]
    assert score_coco(data.table, results).kinds["bbox"].figures["AP"] == pytest.approx(1.0)
    return len(trained)


def doctor(made: tuple[Path, Path], **data: Any) -> dict[str, str]:
    """The doctor's verdicts on the training split, by check."""
    settings = {
        "out": "unused",
        "model": "mask_rcnn_r18_fpn",
        "schedule": {"iters": 1},
        "data": {"train": {"images": str(made[0]), "annotations": str(made[1])}, **data},
        "input": {"short_side_px": [64], "long_side_px": 128, "test_short_side_px": 64},
    }
    verdicts: dict[str, str] = {}
    for check in check_data(validate(settings, RunConfig)):
        before = f"{verdicts[check.name]}; " if check.name in verdicts else ""
        verdicts[check.name] = f"{before}{check.verdict} {check.measured}"
    return verdicts


def test_every_case_is_tested() -> None:
    tested = {*WORKS, *DEGENERATE, *MALFORMED, *REFUSED, *names("box model: works", "left out with a count")}
    assert tested == set(NAMED) and len(NAMED) == 45


@parametrise("name", WORKS)
def test_an_unusual_file_gives_the_object_of_the_base(name: str, tmp_path: Path) -> None:
    made = make_case(NAMED[name], tmp_path)
    table = read(made)
    assert len(table.rows) == 1 and table.class_names == ("a",)
    changed = NAMED[name].get("annotation", {})
    if name != "one-decimal polygon":
        assert table.boxes[table.rows[0]].tolist() == BOX
    if "segmentation" not in changed or name in ("flat polygon", "polygon as pairs"):
        assert table.segmentation(int(table.rows[0]), 0) == [SQUARE]
        assert float(table.areas[table.rows[0]]) == 320
    assert not table.crowd.any() and table.sizes.tolist() == [[48, 64]]
    assert trained_is_scored(made) == 1
    verdicts = doctor(made)
    failed = [f"{check} {verdict}" for check, verdict in verdicts.items() if verdict.startswith("NO")]
    if name.startswith("RLE"):  # the base's box is not that of these run lengths
        assert len(failed) == 1 and "box and outline disagree" in failed[0]
    else:
        assert not failed
    assert verdicts["bbox AP"] == "yes AP 1.0000" and verdicts["segm AP"] == "yes AP 1.0000"


@parametrise("name", DROPPED_CLASSES)
def test_an_unused_root_category_is_left_out_of_the_classes_and_said(name: str, tmp_path: Path) -> None:
    table = read(make_case(NAMED[name], tmp_path))
    assert table.category_ids == (1,)
    assert [line for line in table.findings.lines() if "unused root category" in line]


@parametrise("name", DEGENERATE)
def test_a_degenerate_object_is_dropped_with_a_count(name: str, tmp_path: Path) -> None:
    made = with_a_good_object(NAMED[name], tmp_path / "two")
    table = read(made)
    assert [table.object_ids[row] for row in table.rows] == [2] and table.findings.count("dropped") == 1
    assert any("annotation 1" in line for line in table.findings.lines())
    assert trained_is_scored(made) == 1
    verdicts = doctor(made)
    assert verdicts["annotations"] == "look 1 of 2 objects are used, 1 dropped"
    assert "annotation 1" in verdicts["dropped"] and verdicts["segm AP"] == "yes AP 1.0000"
    alone = make_case(NAMED[name], tmp_path / "one")
    with pytest.raises(BadAnnotations, match="no object is left to use, of 1 annotations"):
        read(alone)
    assert doctor(alone)["annotations"].startswith("NO")


@parametrise("name", MALFORMED)
@parametrise("masks", [True, False])
def test_a_malformed_object_is_refused_by_name_or_dropped_by_a_setting(name: str, masks: bool, tmp_path: Path) -> None:
    made = with_a_good_object(NAMED[name], tmp_path)
    with pytest.raises(BadAnnotations) as refused:
        read(made, ReadOptions(masks=masks))
    message = str(refused.value)
    assert str(made[1]) in message and "annotation 1" in message and "data.on_bad_annotation: drop" in message
    options = ReadOptions(masks=masks, on_bad_annotation="drop")
    table = read(made, options)
    assert [table.object_ids[row] for row in table.rows] == [2] and table.findings.count("dropped") == 1
    assert trained_is_scored(made, options) == 1
    assert doctor(made)["annotations"].startswith("NO") and "annotation 1" in doctor(made)["annotations"]
    assert doctor(made, on_bad_annotation="drop")["annotations"] == "look 1 of 2 objects are used, 1 dropped"


@parametrise(
    "what",
    [
        [[8, 8, float("inf"), 8, 28, 24]],
        [[8, 8, 1e9, 8, 28, 24]],
        [[8, 8, -1e9, 1e9, 28, 24]],
        [[0, 0, 64, 48] * 40_000],
    ],
)
def test_a_polygon_that_would_fill_the_memory_is_refused(what: list[Any], tmp_path: Path) -> None:
    case = {"name": "huge", "annotation": {"segmentation": what}}
    with pytest.raises(BadAnnotations, match="polygon with a value that is not finite or far outside the image"):
        read(make_case(case, tmp_path))


@parametrise("name", REFUSED)
def test_a_file_that_cannot_be_meant_so_is_refused_with_the_fix(name: str, tmp_path: Path) -> None:
    made = make_case(NAMED[name], tmp_path)
    with pytest.raises(BadAnnotations) as refused:
        read(made, ReadOptions(masks="fractions" not in name))
    message = str(refused.value)
    assert str(made[1]) in message
    fixes = {
        "bbox xyxy": "1 of them fit if read as xyxy: set data.box_format: xyxy",
        "bbox in fractions": "data.box_format: xywh_fraction",
        "image ids of two kinds": "write both as numbers, or both as texts",
        "two classes": "data.classes={NAME: [Ant, ant], ...}",
        "no categories": "add the classes to categories",
        "annotations null": "must be a list, got NoneType",
        "no object": "the list of annotations is empty",
    }
    assert next(fix for start, fix in fixes.items() if name.startswith(start)) in message
    assert doctor(made)["annotations"].startswith("NO")


def test_the_settings_that_errors_name_work(tmp_path: Path) -> None:
    corners = make_case(NAMED["bbox xyxy instead of xywh"], tmp_path / "corners")
    assert read(corners, ReadOptions(masks=True, box_format="xyxy")).boxes.tolist() == [BOX]
    assert read(corners, ReadOptions(masks=True, box_format="outline")).boxes.tolist() == [BOX]
    assert read(corners, ReadOptions(masks=True, box_format="xywh")).boxes.tolist() == [[8, 8, 28, 24]]
    fractions = make_case(NAMED["bbox in fractions of the image"], tmp_path / "fractions")
    (box,) = read(fractions, ReadOptions(box_format="xywh_fraction")).boxes.tolist()
    assert box == pytest.approx([0.125 * 64, 0.167 * 48, 0.31 * 64, 0.33 * 48])
    case = make_case(NAMED["two classes that differ in case"], tmp_path / "case")
    assert read(case, ReadOptions(classes={"ant": ("Ant", "ant")})).class_names == ("ant",)
    crowds = make_case(NAMED["all objects iscrowd 1, as CVAT writes masks"], tmp_path / "crowds")
    with pytest.raises(BadAnnotations, match="no object is left"):
        read(crowds, ReadOptions(crowds="crowds"))


def test_a_box_without_an_outline_is_used_by_a_model_of_boxes_only(tmp_path: Path) -> None:
    made = with_a_good_object(NAMED["outline null, box there"], tmp_path)
    assert trained_is_scored(made, ReadOptions()) == 2
    assert trained_is_scored(made) == 1 and read(made).findings.count("dropped") == 1


def test_an_annotation_of_an_unknown_image_is_left_out_with_a_count(tmp_path: Path) -> None:
    case = NAMED["annotation of an unknown image"]
    table = read(make_case(case, tmp_path / "some"))
    assert [table.object_ids[row] for row in table.rows] == [1] and table.findings.count("dropped") == 1
    alone = copy.deepcopy(case)
    alone["annotation"] = {"image_id": 9}
    with pytest.raises(BadAnnotations, match=r"no object is left.*\n.*2 objects: annotation of an image that the file"):
        read(make_case(alone, tmp_path / "all"))
