"""The detection commands on a tiny data set: train, score, predict, fine-tune, and their errors."""

from __future__ import annotations

import json
import re
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
from resnet_backbone.weights.read import read_weights
from tests.tools.conftest import Said
from tools import convert_weights, doctor, eval_det, predict, train_det
from tools.config.detection import RunConfig, load_config
from tools.jobs import detection, runs

ROOT = Path(__file__).resolve().parents[2]
Tiny = Callable[..., RunConfig]
NOTE = "its tensors and outputs are not checked"


def sets(*overrides: str) -> list[str]:
    """Overrides as arguments of a command."""
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture(scope="session")
def trained(tiny_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and run/, which train_det.py wrote in its own process."""
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
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "Traceback" not in process.stderr and "next:" in process.stdout
    return folder


def test_a_run_writes_the_files_of_its_help_text(trained: Path, tiny_shapes: Path) -> None:
    run = trained / "run"
    described = re.findall(r"^  (\S+/?)  +\S", train_det.__doc__ or "", re.MULTILINE)
    assert {p.name for p in run.iterdir()} == {name.partition("/")[0] for name in described}
    scores = json.loads((run / "scores.json").read_text())
    for kind in ("bbox", "segm"):
        figures = scores[kind]
        assert 0 <= figures["AP"] <= figures["AP50"] <= 1
    ground_truth = COCO(str(tiny_shapes / "annotations" / "instances_val.json"))
    results = ground_truth.loadRes(str(run / "results.json"))
    assert len(results.anns) > 20
    for result in results.anns.values():
        image = ground_truth.imgs[result["image_id"]]
        x, y, w, h = result["bbox"]
        assert -0.01 <= x <= x + w <= image["width"] + 0.01 and -0.01 <= y <= y + h <= image["height"] + 0.01
        assert result["segmentation"]["size"] == [image["height"], image["width"]]
        assert result["category_id"] in ground_truth.cats
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["kind"] == "val" and steps[-1]["bbox/AP50"] == scores["bbox"]["AP50"]
    for name in ("training_images.png", "predictions.png", "loss_curve.png"):
        with Image.open(run / name) as picture:
            assert min(picture.size) >= 300 and np.asarray(picture.convert("L")).std() > 5
    assert load_config(run / "config.yaml") == load_config(trained / "tiny.yaml")
    assert "boxes" in (run / "data.txt").read_text()


def test_scoring_a_run_again_gives_its_scores(trained: Path, tmp_path: Path, call: Callable[..., Said]) -> None:
    printed = call(eval_det, trained / "run", "--out", tmp_path / "command")
    assert printed.code == 0 and "written:" in printed.out and NOTE not in printed.out
    scores = detection.evaluate(trained / "run", out=tmp_path / "job")
    for name in ("scores.json", "results.json"):
        expected = json.loads((trained / "run" / name).read_text())
        assert json.loads((tmp_path / "command" / name).read_text()) == expected
        assert json.loads((tmp_path / "job" / name).read_text()) == expected
    assert scores.to_json() == json.loads((trained / "run" / "scores.json").read_text())


def test_a_finished_run_has_a_certified_file_with_the_weights_of_its_checkpoint(trained: Path) -> None:
    result, checkpoint = (read_weights(trained / "run" / n) for n in ("model.safetensors", "checkpoints/last.pt"))
    assert result.certified and not checkpoint.certified
    assert result.meta is not None and checkpoint.meta is not None
    assert {"tensors", "fingerprint"} == set(result.meta) - set(checkpoint.meta)
    assert set(result.state) == set(checkpoint.state)
    assert all(torch.equal(value, checkpoint.state[key]) for key, value in result.state.items())


def test_every_command_says_once_that_a_checkpoint_has_no_certificate(
    trained: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    checkpoint = trained / "run" / "checkpoints" / "last.pt"
    image = next((tiny_shapes / "images" / "val").glob("*.jpg"))
    short = "schedule={iters: 1, warmup_iters: 0}", "data.val=null"
    init_from = sets(*short, f"init_from={checkpoint}", f"out={tmp_path / 'tuned'}")
    backbone_weights = sets(*short, f"backbone_weights={checkpoint}", f"out={tmp_path / 'backbone'}")
    for module, arguments in [
        (eval_det, [checkpoint, "--out", tmp_path / "scores"]),
        (predict, [checkpoint, image, "--out", tmp_path / "seen"]),
        (convert_weights, [checkpoint, tmp_path / "out.safetensors"]),
        (train_det, [trained / "tiny.yaml", *init_from]),
        (train_det, [trained / "tiny.yaml", *backbone_weights]),
    ]:
        printed = call(module, *arguments)
        assert printed.code == 0, printed
        assert printed.out.count(f"{checkpoint} is a checkpoint without a certificate: {NOTE}") == 1, printed
    printed = call(doctor, "weights", checkpoint)
    assert printed.code == 0 and NOTE in printed.out and "passed" not in printed.out
    printed = call(doctor, "weights", trained / "run")
    assert printed.code == 0 and NOTE not in printed.out and printed.out.count(" yes ") == 2


def test_classes_are_matched_by_name_if_the_data_has_another_order(
    trained: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    content = json.loads((tiny_shapes / "annotations" / "instances_val.json").read_text())
    new_ids = {1: 90, 2: 20, 4: 10, 7: 5, 9: 3}
    for annotation in content["annotations"]:
        annotation["category_id"] = new_ids[annotation["category_id"]]
    for category in content["categories"]:
        category["id"] = new_ids[category["id"]]
    (tmp_path / "reordered.json").write_text(json.dumps(content))
    arguments = "--set", f"data.val.annotations={tmp_path / 'reordered.json'}", "--out", tmp_path / "out"
    assert call(eval_det, trained / "run", *arguments).code == 0

    def rows(path: Path, ids: dict[int, int]) -> list[dict[str, Any]]:
        return [r | {"category_id": ids[r["category_id"]]} for r in json.loads(path.read_text())]

    before = rows(trained / "run" / "results.json", {i: i for i in new_ids})
    assert rows(tmp_path / "out" / "results.json", {new: old for old, new in new_ids.items()}) == before
    assert len({r["category_id"] for r in before}) >= 3
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (trained / "run", tmp_path / "out")]
    for kind in ("bbox", "segm"):
        one, two = (score[kind].pop("by_category") for score in scores)
        assert scores[0][kind] == pytest.approx(scores[1][kind])  # the sum over categories has another order
        assert one.keys() == two.keys() and all(two[name] == pytest.approx(one[name]) for name in one)


def test_predictions_lie_in_their_images(
    trained: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    images = sorted((tiny_shapes / "images" / "val").glob("*.jpg"))[:2]
    arguments = trained / "run", *images, "--out", tmp_path / "seen", "--min-score", "0.05", "--device", "cpu"
    assert call(predict, *arguments).code == 0
    written = detection.predict(trained / "run", images, out=tmp_path / "job", min_score=0.05, device="cpu")
    assert [p.image for p in written] == images and all(p.drawn > 3 and p.picture.is_file() for p in written)
    assert [p.json.read_text() for p in written] == [(tmp_path / "seen" / p.json.name).read_text() for p in written]
    for path in images:
        with Image.open(path) as image, Image.open(tmp_path / "seen" / f"{path.stem}.png") as drawn:
            assert drawn.size[0] / drawn.size[1] == pytest.approx(image.size[0] / image.size[1], rel=0.02)
            assert min(drawn.size) >= 480
            assert drawn.size[0] * drawn.size[1] < 4_000_000
        content = json.loads((tmp_path / "seen" / f"{path.stem}.json").read_text())
        assert (content["width"], content["height"]) == image.size and len(content["detections"]) > 3
        scores = [d["score"] for d in content["detections"]]
        assert scores == sorted(scores, reverse=True)
        for row in content["detections"]:
            x1, y1, x2, y2 = row["box_xyxy"]
            assert 0 <= x1 < x2 <= image.size[0] and 0 <= y1 < y2 <= image.size[1] and 0 <= row["score"] <= 1
            assert row["label"] in ("circle", "triangle", "square", "star", "cross")
            assert row["mask_rle"]["size"] == [image.size[1], image.size[0]]


def test_a_run_is_not_overwritten_by_mistake(trained: Path, tmp_path: Path, call: Callable[..., Said]) -> None:
    before = {p: p.stat().st_mtime_ns for p in (trained / "run").rglob("*")}
    printed = call(train_det, trained / "tiny.yaml")
    assert printed.code == 2 and "already holds a run" in printed.err and "--overwrite" in printed.err
    assert {p: p.stat().st_mtime_ns for p in (trained / "run").rglob("*")} == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("ten years of work")
    printed = call(train_det, trained / "tiny.yaml", "--overwrite", "--set", f"out={tmp_path / 'thesis'}")
    assert printed.code == 2 and "is not empty and holds no run" in printed.err
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "ten years of work"
    printed = call(train_det, trained / "tiny.yaml", "--resume", "--set", f"out={tmp_path / 'nothing'}")
    assert printed.code == 2 and "no checkpoint to resume from" in printed.err
    printed = call(train_det, trained / "tiny.yaml", "--resume", "--set", "model.box.hidden=64")
    assert printed.code == 2 and "model differs from the run" in printed.err


def test_overwrite_replaces_an_earlier_run(tiny: Tiny) -> None:
    config = tiny()
    runs.prepare_folder(config, resume=False, overwrite=False)
    (config.out / "old.txt").write_text("old")
    runs.prepare_folder(config, resume=False, overwrite=True)
    assert sorted(p.name for p in config.out.iterdir()) == ["config.yaml"]


def test_fine_tuning_on_some_of_the_classes_loads_their_rows_by_name(
    trained: Path, tiny_shapes: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    """Two of the three classes are the run's; the third has another name."""
    content = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    content["categories"] = [c for c in content["categories"] if c["id"] in (1, 2, 4)]
    content["categories"][1]["name"] = "wedge"
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in (1, 2, 4)]
    (tmp_path / "three.json").write_text(json.dumps(content))
    overrides = (
        f"out={tmp_path / 'tuned'}",
        f"init_from={trained / 'run'}",
        f"data.train.annotations={tmp_path / 'three.json'}",
        "data.val=null",
        "schedule={iters: 1, warmup_iters: 0}",
    )
    config = load_config(trained / "tiny.yaml", overrides)
    source, _ = load_detector(trained / "run" / "checkpoints" / "last.pt")
    made = detection.make_detector(config, detection.load_train(config), Console(quiet=True))
    before, after = source.state_dict(), made.state_dict()
    class_layers = {k for k in after if k.startswith(("box_head.logits", "box_head.deltas", "mask_head.logits"))}
    assert before.keys() == after.keys() and len(class_layers) == 6
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - class_layers)
    assert made.box_head.num_classes == 3 and made.class_names == ("circle", "wedge", "square")
    logits, theirs = after["box_head.logits.weight"], before["box_head.logits.weight"]
    assert torch.equal(logits[[0, 2, 3]], theirs[[0, source.class_names.index("square"), 5]])
    assert not bool((logits[1] == theirs[1]).any())

    printed = call(train_det, trained / "tiny.yaml", *sets(*overrides))
    assert printed.code == 0, printed.err
    table = (tmp_path / "tuned" / "weights.txt").read_text()
    rows = {row[0]: row[1:] for row in (line.split() for line in table.splitlines()) if len(row) > 2}
    kept = "logits.weight (1 of 4 rows), logits.bias (1 of 4 rows), deltas.weight (4 of 12 rows), deltas.bias"
    assert rows["box_head"][:2] == ["4", "4"] and kept in table and rows["neck"][1:] == ["0"]
    assert "2 of 3 classes are in the weights (circle, square), initial values for wedge" in table
    assert "box_head" in printed.out and "deltas.weight" in printed.out
    tuned, _ = load_detector(tmp_path / "tuned" / "checkpoints" / "last.pt")
    assert tuned.class_names == made.class_names


def test_fine_tuning_on_the_same_classes_in_another_order_moves_their_rows(
    trained: Path, tiny_shapes: Path, tmp_path: Path
) -> None:
    """Loaded by position, every label would silently stand for another class."""
    content = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], names[1:] + names[:1], strict=True):
        category["name"] = name
    (tmp_path / "turned.json").write_text(json.dumps(content))
    overrides = f"init_from={trained / 'run'}", f"data.train.annotations={tmp_path / 'turned.json'}"
    config = load_config(trained / "tiny.yaml", overrides)
    source, _ = load_detector(trained / "run")
    made = detection.make_detector(config, detection.load_train(config), Console(quiet=True))
    order = [source.class_names.index(name) for name in made.class_names]
    before, after = source.state_dict(), made.state_dict()
    assert order != sorted(order)
    assert torch.equal(after["box_head.logits.bias"], before["box_head.logits.bias"][[*order, 5]])
    assert torch.equal(after["mask_head.logits.weight"], before["mask_head.logits.weight"][order])
    deltas = before["box_head.deltas.weight"].reshape(5, 4, -1)[order].flatten(0, 1)
    assert torch.equal(after["box_head.deltas.weight"], deltas)


@pytest.mark.parametrize(
    ("overrides", "message"),
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
def test_mistakes_in_settings_are_errors_without_a_traceback(
    overrides: list[str], message: str, tiny_yaml: Path, call: Callable[..., Said]
) -> None:
    printed = call(train_det, tiny_yaml, *sets(*overrides))
    assert printed.code == 2
    assert printed.err.startswith("error: ") and message in printed.err and "Traceback" not in printed.err


def test_wrong_files_are_errors_of_the_other_commands_too(
    tiny_yaml: Path, trained: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    (tmp_path / "half.pt").write_bytes((trained / "run" / "checkpoints" / "last.pt").read_bytes()[:100_000])
    (tmp_path / "text.jpg").write_text("no image")
    for module, arguments, message in [
        (eval_det, [tmp_path / "nothing.pt", tiny_yaml], "no detector at"),
        (eval_det, [tmp_path / "half.pt", tiny_yaml], "half.pt is not a whole torch file"),
        (eval_det, [tmp_path / "half.pt"], "give a configuration (CONFIG, after the weights"),
        (
            predict,
            [tmp_path, tmp_path / "text.jpg", "--out", tmp_path / "o"],
            "has no model.safetensors and no checkpoints/last.pt",
        ),
        (
            predict,
            [trained / "run", tmp_path / "text.jpg", "--out", tmp_path / "o"],
            "text.jpg cannot be read as an image",
        ),
    ]:
        printed = call(module, *arguments)
        assert printed.code == 2 and printed.err.startswith("error: ") and message in printed.err, printed


def test_the_process_exits_with_two_after_a_mistake(tiny_yaml: Path) -> None:
    command = [sys.executable, "tools/train_det.py", str(tiny_yaml), "--set", "optimiser.rl=1"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2 and process.stdout == ""
    assert "optimiser.rl: no such setting" in process.stderr and "Traceback" not in process.stderr


def test_two_trainings_in_one_process_may_differ_in_precision(tiny: Tiny, tmp_path: Path) -> None:
    """Accelerate itself refuses a second precision."""
    short = "schedule={iters: 1, warmup_iters: 0}", "data.val=null", "model.mask=null"
    for precision in ("fp32", "bf16"):
        config = tiny(*short, f"train.precision={precision}", f"out={tmp_path / precision}")
        trained = detection.train(config).state_dict()
        saved, _ = load_detector(config.out)
        assert all(torch.equal(value, saved.state_dict()[key]) for key, value in trained.items())


def test_predicting_imports_no_part_of_the_training_engine() -> None:
    code = (
        "import sys, tools.predict, tools.eval_det\n"
        "print({'accelerate', 'tensorboard', 'albumentations'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.stdout == "set()\n", process.stdout + process.stderr
