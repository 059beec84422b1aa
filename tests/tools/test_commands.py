"""The commands one after another, as a person would give them, on a tiny data set."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console

from heads.files import load_detector
from tests.tools.conftest import Said
from tools import eval_det, predict, train_det
from tools.config.detection import RunConfig, load_config
from tools.jobs import runs

ROOT = Path(__file__).resolve().parents[2]
Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def trained(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run/, made by train_det.py in a process of its own, and tiny.yaml."""
    folder = tmp_path_factory.mktemp("trained")
    split = {
        name: f"{{images: {tiny_shapes}/images/{name}, annotations: {tiny_shapes}/annotations/instances_{name}.json}}"
        for name in ("train", "val")
    }
    (folder / "tiny.yaml").write_text(f"""
out: {folder}/run
model:
  recipe: mask_rcnn_r18_fpn
  norm: bn
  frozen_stages: 0
  pyramid_channels: 16
  rpn: {{anchor_sizes_px: [[12], [24], [36], [48], [64]], samples_per_image: 32, keep_before_nms_train: 50,
         keep_after_nms_train: 30, keep_before_nms_test: 50, keep_after_nms_test: 30}}
  box: {{hidden: 32, samples_per_image: 16, max_detections: 60, min_score: 0.01}}
  mask: {{channels: 16, convs: 1}}
backbone_weights: null
data: {{train: {split["train"]}, val: {split["val"]}, empty_images: keep, workers: 1}}
input: {{short_side_px: [96], long_side_px: 128, test_short_side_px: 96}}
optimiser: {{lr: 0.002}}
schedule: {{iters: 4, warmup_iters: 2}}
train: {{batch_size: 4, device: cpu}}
eval: {{batch_size: 4}}
""")
    command = [sys.executable, "tools/train_det.py", str(folder / "tiny.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "next:" in done.stdout
    return folder


def test_a_run_leaves_what_it_promises(trained: Path, tiny_shapes: Path) -> None:
    run = trained / "run"
    scores = json.loads((run / "scores.json").read_text())
    for kind in ("bbox", "segm"):
        figures = scores[kind]
        assert 0 <= figures["AP"] <= figures["AP50"] <= 1
    truth = COCO(str(tiny_shapes / "annotations" / "instances_val.json"))
    found = truth.loadRes(str(run / "results.json"))
    assert len(found.anns) > 20
    for result in found.anns.values():
        image = truth.imgs[result["image_id"]]
        x, y, w, h = result["bbox"]
        assert -0.01 <= x <= x + w <= image["width"] + 0.01 and -0.01 <= y <= y + h <= image["height"] + 0.01
        assert result["segmentation"]["size"] == [image["height"], image["width"]]
        assert result["category_id"] in truth.cats
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["kind"] == "val" and steps[-1]["bbox/AP50"] == scores["bbox"]["AP50"]
    for name in ("training_images.png", "predictions.png", "loss_curve.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) >= 300 and np.asarray(picture.convert("L")).std() > 5
    assert load_config(run / "config.yaml") == load_config(trained / "tiny.yaml")
    assert "boxes" in (run / "data.txt").read_text()


def test_scoring_a_run_again_gives_its_scores(trained: Path, tmp_path: Path, call: Callable[..., Said]) -> None:
    said = call(eval_det, trained / "run", "--out", tmp_path / "again")
    assert said.code == 0 and "written:" in said.out
    for name in ("scores.json", "results.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((trained / "run" / name).read_text())


def test_classes_are_matched_by_name_when_the_data_orders_them_otherwise(
    trained: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    content = json.loads((tiny_shapes / "annotations" / "instances_val.json").read_text())
    other = {1: 90, 2: 20, 4: 10, 7: 5, 9: 3}
    for annotation in content["annotations"]:
        annotation["category_id"] = other[annotation["category_id"]]
    for category in content["categories"]:
        category["id"] = other[category["id"]]
    (tmp_path / "reordered.json").write_text(json.dumps(content))
    arguments = "--set", f"data.val.annotations={tmp_path / 'reordered.json'}", "--out", tmp_path / "out"
    assert call(eval_det, trained / "run", *arguments).code == 0

    def rows(path: Path, ids: dict[int, int]) -> list[dict[str, Any]]:
        return [r | {"category_id": ids[r["category_id"]]} for r in json.loads(path.read_text())]

    before = rows(trained / "run" / "results.json", {i: i for i in other})
    assert rows(tmp_path / "out" / "results.json", {new: old for old, new in other.items()}) == before
    assert len({r["category_id"] for r in before}) >= 3
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (trained / "run", tmp_path / "out")]
    for kind in ("bbox", "segm"):
        one, two = (score[kind].pop("by_category") for score in scores)
        assert scores[0][kind] == pytest.approx(scores[1][kind])  # categories are summed in another order
        assert one.keys() == two.keys() and all(two[name] == pytest.approx(one[name]) for name in one)


def test_predictions_lie_in_their_images(
    trained: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    images = sorted((tiny_shapes / "images" / "val").glob("*.jpg"))[:2]
    said = call(predict, trained / "run", *images, "--out", tmp_path / "seen", "--min-score", "0.05", "--device", "cpu")
    assert said.code == 0
    for path in images:
        with Image.open(path) as image, Image.open(tmp_path / "seen" / f"{path.stem}.png") as drawn:
            assert drawn.size[0] / drawn.size[1] == pytest.approx(image.size[0] / image.size[1], rel=0.02)
            assert min(drawn.size) >= 480
            assert drawn.size[0] * drawn.size[1] < 4_000_000
        content = json.loads((tmp_path / "seen" / f"{path.stem}.json").read_text())
        assert (content["width"], content["height"]) == image.size and len(content["detections"]) > 3
        scores = [d["score"] for d in content["detections"]]
        assert scores == sorted(scores, reverse=True)
        for found in content["detections"]:
            x1, y1, x2, y2 = found["box_xyxy"]
            assert 0 <= x1 < x2 <= image.size[0] and 0 <= y1 < y2 <= image.size[1] and 0 <= found["score"] <= 1
            assert found["label"] in ("circle", "triangle", "square", "star", "cross")
            assert found["mask_rle"]["size"] == [image.size[1], image.size[0]]


def test_a_run_is_not_lost_by_mistake(trained: Path, tmp_path: Path, call: Callable[..., Said]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (trained / "run").rglob("*")}
    said = call(train_det, trained / "tiny.yaml")
    assert said.code == 2 and "already holds a run" in said.err and "--overwrite" in said.err
    assert {p: p.stat().st_mtime_ns for p in (trained / "run").rglob("*")} == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("ten years of work")
    said = call(train_det, trained / "tiny.yaml", "--overwrite", "--set", f"out={tmp_path / 'thesis'}")
    assert said.code == 2 and "is not empty and no run of ours" in said.err
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "ten years of work"
    said = call(train_det, trained / "tiny.yaml", "--resume", "--set", f"out={tmp_path / 'nothing'}")
    assert said.code == 2 and "no checkpoint to resume from" in said.err
    said = call(train_det, trained / "tiny.yaml", "--resume", "--set", "model.box.hidden=64")
    assert said.code == 2 and "model differs from the run" in said.err


def test_overwrite_replaces_an_earlier_run(tiny: Tiny) -> None:
    config = tiny()
    runs.prepare_folder(config, resume=False, overwrite=False)
    (config.out / "old.txt").write_text("old")
    runs.prepare_folder(config, resume=False, overwrite=True)
    assert sorted(p.name for p in config.out.iterdir()) == ["config.yaml"]


def test_fine_tuning_on_other_classes_keeps_everything_but_the_class_layers(
    trained: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    content = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    content["categories"] = [c for c in content["categories"] if c["id"] in (1, 2, 4)]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in (1, 2, 4)]
    (tmp_path / "three.json").write_text(json.dumps(content))
    sets = (
        f"out={tmp_path / 'tuned'}",
        f"init_from={trained / 'run'}",
        f"data.train.annotations={tmp_path / 'three.json'}",
        "data.val=null",
        "schedule={iters: 1, warmup_iters: 0}",
    )
    config = load_config(trained / "tiny.yaml", sets)
    source, _ = load_detector(trained / "run" / "checkpoints" / "last.pt")
    made = train_det.make_detector(config, train_det.load_train(config), Console(quiet=True))
    before, after = source.state_dict(), made.state_dict()
    class_layers = {k for k in after if k.startswith(("box_head.logits", "box_head.deltas", "mask_head.logits"))}
    assert before.keys() == after.keys() and len(class_layers) == 6
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - class_layers)
    assert made.box_head.num_classes == 3 and made.class_names == ("circle", "triangle", "square")

    said = call(train_det, trained / "tiny.yaml", *(part for one in sets for part in ("--set", one)))
    assert said.code == 0, said.err
    table = (tmp_path / "tuned" / "weights.txt").read_text()
    rows = {row[0]: row[1:] for row in (line.split() for line in table.splitlines()) if len(row) > 2}
    kept = ["logits.weight,", "logits.bias,", "deltas.weight,", "deltas.bias"]
    assert rows["box_head"] == ["4", "4", *kept] and rows["neck"][1:] == ["0"]
    assert "box_head" in said.out and "deltas.weight" in said.out
    tuned, _ = load_detector(tmp_path / "tuned" / "checkpoints" / "last.pt")
    assert tuned.class_names == made.class_names


def test_fine_tuning_on_the_same_number_of_other_classes_is_refused(
    trained: Path, tiny_shapes: Path, tmp_path: Path
) -> None:
    """Labels would silently mean something else."""
    content = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    for category in content["categories"]:
        category["name"] += "s"
    (tmp_path / "renamed.json").write_text(json.dumps(content))
    sets = f"init_from={trained / 'run'}", f"data.train.annotations={tmp_path / 'renamed.json'}"
    config = load_config(trained / "tiny.yaml", sets)
    with pytest.raises(ValueError, match="5 classes here and in the weights, with other names or another order"):
        train_det.make_detector(config, train_det.load_train(config), Console(quiet=True))


@pytest.mark.parametrize(
    ("sets", "wanted"),
    [
        (["train.bacth_size=3"], "train.bacth_size: no such setting: did you mean 'batch_size'"),
        (["backbone_weights=/nowhere/resnet18.pth"], "no weights at /nowhere/resnet18.pth"),
        (["init_from=/nowhere/run"], "no detector at /nowhere/run"),
        (["data.train=null"], "nothing to train on: set data.train.images"),
        (["data.train.annotations=/nowhere/a.json"], "no annotations at /nowhere/a.json"),
        (["train.precision=fp16"], "precision=fp16 needs a GPU"),
        (["model.norm=sync_bn"], "sync_bn trains on CUDA only"),
        (["train.batch_size=6", "train.accumulate=4"], "must be a multiple of accumulate=4"),
    ],
)
def test_what_cannot_be_done_is_an_error_without_a_traceback(
    sets: list[str], wanted: str, tiny_yaml: Path, call: Callable[..., Said]
) -> None:
    said = call(train_det, tiny_yaml, *(part for one in sets for part in ("--set", one)))
    assert said.code == 2
    assert said.err.startswith("error: ") and wanted in said.err and "Traceback" not in said.err


def test_wrong_files_are_errors_of_the_other_commands_too(
    tiny_yaml: Path, trained: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    (tmp_path / "half.pt").write_bytes((trained / "run" / "checkpoints" / "last.pt").read_bytes()[:100_000])
    (tmp_path / "text.jpg").write_text("no image")
    for module, arguments, wanted in [
        (eval_det, [tmp_path / "nothing.pt", tiny_yaml], "no detector at"),
        (eval_det, [tmp_path / "half.pt", tiny_yaml], "half.pt is not a whole torch file"),
        (eval_det, [tmp_path / "half.pt"], "name a CONFIG after the weights"),
        (predict, [tmp_path, tmp_path / "text.jpg", "--out", tmp_path / "o"], "has no checkpoints/last.pt"),
        (
            predict,
            [trained / "run", tmp_path / "text.jpg", "--out", tmp_path / "o"],
            "text.jpg cannot be read as an image",
        ),
    ]:
        said = call(module, *arguments)
        assert said.code == 2 and said.err.startswith("error: ") and wanted in said.err, said


def test_the_process_itself_exits_with_two(tiny_yaml: Path) -> None:
    command = [sys.executable, "tools/train_det.py", str(tiny_yaml), "--set", "optimiser.rl=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert "optimiser.rl: no such setting" in done.stderr and "Traceback" not in done.stderr
