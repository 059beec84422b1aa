"""Scores are replaced by those of the same evaluation only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.tools.conftest import Said
from tools import eval_cls, eval_det
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig
from tools.jobs import classification, detection

Tiny = Callable[..., RunConfig]
Call = Callable[..., Said]


def files(folder: Path) -> dict[str, bytes]:
    names = ("results.json", "scores.json", "evaluated.json", "scores_10-crop.json")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


TRAINED: list[Path] = []


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run of one step without a mask head, and its scores."""
    if not TRAINED:
        out = tmp_path_factory.mktemp("evaluated") / "run"
        short = "schedule={iters: 1, warmup_iters: 0}", "model.mask=null", "data.val.max_images=2"
        detection.train(tiny(*short, f"out={out}"))
        TRAINED.append(out)
    shutil.copytree(TRAINED[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_scored_again_without_a_flag(run: Path, call: Call) -> None:
    before = files(run)
    assert set(before) == {"results.json", "scores.json", "evaluated.json"}
    for weights in (run, run / "model.safetensors", run / "checkpoints" / "last.pt"):
        said = call(eval_det, weights)
        assert said.code == 0, said.err
        assert files(run) == before


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("eval.max_detections=50", "eval.max_detections=50 (before: 100)"),
        ("eval.batch_size=1", "eval.batch_size=1 (before: 2)"),
        ("train.precision=bf16", "train.precision=bf16 (before: fp32)"),
        ("data.val.max_images=1", "other data"),
        ("data.val.images={copy}", "other data"),
    ],
)
def test_another_evaluation_is_refused_before_it_predicts(
    override: str,
    reason: str,
    run: Path,
    tmp_path: Path,
    tiny_shapes: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "copy" in override:
        shutil.copytree(tiny_shapes / "images" / "val", tmp_path / "copy")
    before = files(run)
    monkeypatch.setattr(detection, "predict_results", lambda *_: pytest.fail("predicted before the check"))
    said = call(eval_det, run, "--set", override.format(copy=tmp_path / "copy"))
    assert said.code == 2 and f"another evaluation ({reason}" in said.err and files(run) == before, said
    assert "--overwrite" in said.err and "--out" in said.err


def test_the_fixes_of_the_message_work(run: Path, tmp_path: Path, call: Call) -> None:
    before, other = files(run), ("--set", "eval.max_detections=50")
    assert call(eval_det, run, *other, "--out", tmp_path / "elsewhere").code == 0
    assert files(run) == before and len(files(tmp_path / "elsewhere")) == 3
    assert call(eval_det, run, *other, "--overwrite").code == 0
    assert json.loads((run / "scores.json").read_text())["max_detections"] == 50
    assert call(eval_det, run, *other).code == 0 and call(eval_det, run).code == 2


def test_other_weights_do_not_replace_the_scores(run: Path, tiny: Tiny, tmp_path: Path, call: Call) -> None:
    config = tiny(
        "schedule={iters: 1, warmup_iters: 0}",
        "model.mask=null",
        "data.val=null",
        "train.seed=1",
        f"out={tmp_path}/two",
    )
    detection.train(config)
    before = files(run)
    said = call(eval_det, config.out, run / "config.yaml", "--out", run)
    assert said.code == 2 and "other weights" in said.err and files(run) == before


@pytest.mark.parametrize("damage", ["no record", "no JSON", "list", "edited", "of"])
def test_scores_of_unknown_origin_are_kept(damage: str, run: Path, call: Call) -> None:
    record = run / "evaluated.json"
    if damage == "no record":
        record.unlink()
    elif damage == "edited":
        (run / "scores.json").write_text('{"mine": 1}')
    else:
        record.write_text({"no JSON": "{", "list": "[]", "of": '{"scores.json": {"of": 1}, "results.json": 3}'}[damage])
    before = files(run)
    said = call(eval_det, run)
    assert said.code == 2 and "does not say which evaluation it is of" in said.err and files(run) == before
    assert call(eval_det, run, "--overwrite").code == 0 and call(eval_det, run).code == 0


def test_changed_images_and_annotations_are_another_evaluation(
    run: Path, tiny_shapes: Path, tmp_path: Path, call: Call
) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny_shapes / "images" / "val", images)
    content = json.loads((tiny_shapes / "annotations" / "instances_val.json").read_text())
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content))
    arguments = (
        "--set",
        f"data.val.images={images}",
        "--set",
        f"data.val.annotations={file}",
        "--out",
        tmp_path / "out",
    )
    assert call(eval_det, run, *arguments).code == 0
    first = min(content["images"], key=lambda image: int(image["id"]))
    box = next(row["bbox"] for row in content["annotations"] if row["image_id"] == first["id"])
    box[2] *= 0.9
    file.write_text(json.dumps(content))
    said = call(eval_det, run, *arguments)
    assert said.code == 2 and "other data" in said.err
    assert call(eval_det, run, *arguments, "--overwrite").code == 0
    with Image.open(images / first["file_name"]) as image:
        image.rotate(180).save(images / first["file_name"], quality=50)
    assert call(eval_det, run, *arguments).code == 2


def test_scores_of_a_classifier_are_replaced_by_the_same_evaluation_only(
    tiny_shapes: Path, tmp_path: Path, call: Call
) -> None:
    for part, count in (("train", 4), ("val", 2)):
        for name in ("one", "two"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for path in sorted((tiny_shapes / "images" / part).glob("*.jpg"))[:count]:
                shutil.copy(path, tmp_path / "data" / part / name)
    config = ClassifierRunConfig.model_validate(
        {
            "out": str(tmp_path / "run"),
            "model": {"net": "resnet20_cifar"},
            "data": {
                "train": {"images": str(tmp_path / "data"), "part": "train"},
                "val": {"images": str(tmp_path / "data"), "part": "val"},
                "workers": 0,
            },
            "input": {"short_side_px": [36, 40], "crop_px": 32, "test_short_side_px": 36},
            "schedule": {"iters": 1, "warmup_iters": 0},
            "train": {"batch_size": 4, "device": "cpu"},
        }
    )
    classification.train(config)
    before = files(config.out)
    assert set(before) == {"scores.json", "evaluated.json"}
    assert call(eval_cls, config.out).code == 0 and files(config.out) == before
    assert call(eval_cls, config.out, "--set", "eval.crops=10-crop").code == 0  # a file of its own
    ten = files(config.out)
    assert ten["scores.json"] == before["scores.json"] and "scores_10-crop.json" in ten
    for crops in ("1-crop", "10-crop"):
        sets = ("--set", f"eval.crops={crops}", "--set", "input.test_short_side_px=40")
        said = call(eval_cls, config.out, *sets)
        assert said.code == 2 and "input.test_short_side_px=40 (before: 36)" in said.err and files(config.out) == ten
    said = call(eval_cls, config.out, "--set", "data.val.max_images=2")
    assert said.code == 2 and "other data" in said.err
    assert call(eval_cls, config.out, "--set", "data.val.max_images=2", "--overwrite").code == 0
    assert files(config.out)["scores_10-crop.json"] == ten["scores_10-crop.json"]
    assert call(eval_cls, config.out).code == 2
