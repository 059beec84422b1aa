"""The doctor's checks of what is wrong with a data set although each annotation can be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.conftest import Said
from tools import doctor as command
from tools.config.detection import RunConfig
from tools.config.settings import validate
from tools.evaluation.scores import score_coco
from tools.jobs.data_checks import Check
from tools.jobs.detection_data import load_data
from tools.jobs.detection_scores import Predicted, score
from tools.jobs.doctor import check_data

SIDE = 128


def write(root: Path, split: str, boxes: list[list[list[int]]], seed: int = 0) -> dict[str, str]:
    """A split of noisy images with the given boxes (x, y, width, height), all of one class."""
    folder = root / split
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number, rows in enumerate(boxes, 1):
        pixels = np.random.default_rng([seed, number]).integers(0, 255, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for box in rows:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
    path = root / f"{split}.json"
    categories = [{"id": 1, "name": "thing"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return {"images": str(folder), "annotations": str(path)}


def config(train: dict[str, str], val: dict[str, str] | None = None, **more: Any) -> RunConfig:
    values = {
        "out": "x",
        "model": "faster_rcnn_r18_fpn",
        "schedule": {"iters": 1},
        "data": {"train": train, **({"val": val} if val else {}), **more.pop("data", {})},
        "input": {"short_side_px": [SIDE], "long_side_px": 256, "test_short_side_px": SIDE},
        **more,
    }
    return validate(values, RunConfig)


def verdicts(checks: list[Check], split: str = "train") -> dict[str, Check]:
    return {check.name: check for check in checks if check.split in (split, "")}


ONE = [[[10, 10, 40, 40]]]


def test_an_image_in_both_splits_fails_and_a_similar_one_asks_for_a_look(tmp_path: Path) -> None:
    train = write(tmp_path, "train", ONE * 4)
    val = write(tmp_path, "val", ONE * 4, seed=1)
    shutil.copy(tmp_path / "train" / "1.png", tmp_path / "val" / "2.png")
    with Image.open(tmp_path / "train" / "3.png") as image:
        image.resize((SIDE // 2, SIDE // 2)).resize((SIDE, SIDE)).save(tmp_path / "val" / "4.png")
    checks = verdicts(check_data(config(train, val)), "val")
    assert (
        not checks["leaks"].passed
        and "1 of 4" in checks["leaks"].measured
        and "1.png = 2.png" in checks["leaks"].measured
    )
    assert checks["near-duplicates"].verdict == "look" and "3.png ~ 4.png" in checks["near-duplicates"].measured
    shutil.copy(tmp_path / "val" / "1.png", tmp_path / "val" / "3.png")
    assert verdicts(check_data(config(train, val)), "val")["copies"].verdict == "look"


def test_more_objects_of_a_class_than_coco_scores_fail_with_the_setting_that_works(tmp_path: Path) -> None:
    grid = [[x, y, 9, 9] for x in range(2, 122, 10) for y in range(2, 102, 10)]
    train = write(tmp_path, "train", [grid])
    ap = verdicts(check_data(config(train)))["bbox AP"]
    assert len(grid) == 120 and not ap.passed and float(ap.measured.split()[-1]) == pytest.approx(0.83, abs=0.01)
    assert "set eval.max_detections=120" in ap.cause and "no longer COCO's AP" in ap.cause
    ap = verdicts(check_data(config(train, eval={"max_detections": 120})))["bbox AP"]
    assert ap.passed and ap.measured == "AP with up to 120 detections of a class (not COCO's) 1.0000"


def test_scores_with_another_limit_say_so_and_equal_cocos_where_the_limit_does_not_matter(tmp_path: Path) -> None:
    truth = load_data(config(write(tmp_path, "train", ONE * 3))).train
    assert truth is not None
    results = [{**a, "score": 0.5} for a in truth.table.to_coco()["annotations"][:2]]
    usual, other = score_coco(truth.table, results), score_coco(truth.table, results, max_detections=300)
    assert usual.kinds == other.kinds and usual.to_json()["max_detections"] == 100
    assert other.to_json()["max_detections"] == 300


def test_contradicting_boxes_outside_boxes_and_rare_classes_are_reported(tmp_path: Path) -> None:
    train = write(tmp_path, "train", [[[10, 10, 40, 40], [100, 100, 60, 20]]])
    content = json.loads(Path(train["annotations"]).read_text())
    content["annotations"][0]["segmentation"] = [[60, 60, 90, 60, 90, 90]]
    Path(train["annotations"]).write_text(json.dumps(content))
    checks = check_data(config(train))
    disagree = next(check for check in checks if "box and outline disagree" in check.measured)
    assert not disagree.passed and "annotation 1" in disagree.measured
    assert any("sticks out of its image" in check.measured and check.verdict == "look" for check in checks)
    assert "fewer than 10 objects: thing 2" in verdicts(checks)["classes"].measured


def test_nothing_checked_is_no(tmp_path: Path) -> None:
    train = write(tmp_path, "train", [[]])
    checks = check_data(config(train))
    assert [check.verdict for check in checks] == ["NO"] and "the list of annotations is empty" in checks[0].measured


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_a_damaged_image_fails_or_is_left_out_as_the_setting_says(on_bad_image: str, tmp_path: Path) -> None:
    train = write(tmp_path, "train", ONE * 3)
    path = tmp_path / "train" / "2.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images = verdicts(check_data(config(train, data={"on_bad_image": on_bad_image})))["images"]
    assert images.verdict == ("NO" if on_bad_image == "stop" else "look") and "2 of 3 can be used" in images.measured


def test_images_that_cannot_be_read_are_left_out_of_the_scores(tmp_path: Path) -> None:
    settings = config(write(tmp_path, "train", ONE * 4))
    data = load_data(settings).train
    assert data is not None

    class Boxes:
        instance_heads: tuple[str, ...] = ()

    results = [{**a, "score": 1.0} for a in data.table.to_coco()["annotations"] if a["image_id"] != 3]
    detector: Any = Boxes()
    assert score(detector, Predicted(results, [3]), data, settings).kinds["bbox"].figures["AP"] == pytest.approx(1.0)
    missed = score(detector, Predicted(results, []), data, settings).kinds["bbox"].figures["AP"]
    assert missed is not None and missed < 0.8


def test_the_command_prints_json_and_exits_with_1_on_no(tmp_path: Path, call: Callable[..., Said]) -> None:
    train = write(tmp_path, "train", [[[10, 10, 40, 40]], [[5, 5, 50, 50]]])
    settings = ["--set", "out=x", "--set", "model=faster_rcnn_r18_fpn", "--set", "schedule.iters=1"]
    yaml = tmp_path / "run.yaml"
    yaml.write_text(json.dumps({"data": {"train": train}}))
    said = call(command, "data", yaml, "--json", *settings, "--set", "input.test_short_side_px=640")
    assert said.code == 0 and {row["verdict"] for row in json.loads(said.out)} == {"yes", "look"}
    (tmp_path / "train" / "1.png").unlink()
    said = call(command, "data", yaml, "--json", *settings)
    assert said.code == 1 and [row["verdict"] for row in json.loads(said.out)] == ["NO"]
