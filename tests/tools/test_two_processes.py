"""Training in two processes with one image each gives the same detector as one process with both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from heads.files import load_detector
from tools.config.detection import load_config
from tools.jobs import detection

ROOT = Path(__file__).resolve().parents[2]
# nothing is random: no flip, one size, every anchor and proposal sampled, a norm without batch statistics
SETS = (
    "model.norm=gn",
    "model.rpn.samples_per_image=100000",
    "model.box={samples_per_image: 100000, min_score: 0}",
    "input={flip_probability: 0, short_side_px: [96], long_side_px: 128, test_short_side_px: 96}",
    "schedule={iters: 2, warmup_iters: 0, decay_at: []}",
    "train={batch_size: 2, device: cpu, group_by_aspect: false, log_every_iters: 1}",
    "optimiser={lr: 0.02, clip_norm: 100}",
    "data.workers=1",
    "eval.batch_size=1",
)


def train(launcher: list[str], config: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    sets = [part for one in (*SETS, f"out={out}", *more) for part in ("--set", one)]
    command = [sys.executable, *launcher, "tools/train_det.py", str(config), *sets]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert process.returncode == 0, process.stdout + process.stderr
    processes = 2 if launcher else 1
    assert f"{processes} process(es)" in process.stdout
    return load_detector(out)[0].state_dict()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_train_the_same_weights_as_one(tiny_yaml: Path, tiny_shapes: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # images of one size: a batch is padded to its largest image, and anchors on the padding are negative examples
    content = json.loads((tiny_shapes / "annotations" / "instances_train.json").read_text())
    content["images"] = [image for image in content["images"] if image["width"] == image["height"]]
    square = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in square]
    (tmp_path / "square.json").write_text(json.dumps(content))
    same = f"data.train.annotations={tmp_path / 'square.json'}"
    one = train([], tiny_yaml, tmp_path / "one", same)
    two = train(launcher, tiny_yaml, tmp_path / "two", same)
    config = load_config(tmp_path / "one" / "config.yaml")
    torch.manual_seed(config.train.seed)
    start = detection.make_detector(config, detection.load_train(config), Console(quiet=True)).state_dict()
    assert start.keys() == one.keys() == two.keys()
    moved = 0
    for key, before in start.items():
        change = float((one[key] - before).abs().max())
        rounding = 2e-7 * float(before.abs().max())
        # relative to the change: two steps are short, and a tolerance relative to the weight would hide any error
        assert float((two[key] - one[key]).abs().max()) <= 2e-3 * change + rounding, key
        moved += change > 20 * rounding
    assert moved > 0.8 * len(start)
    # both are scored on all validation images
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    scores = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "two")]
    assert len(results[0]) == len(results[1]) > 20
    assert {r["image_id"] for r in results[0]} == {r["image_id"] for r in results[1]}
    assert scores[0]["bbox"]["AP"] == pytest.approx(scores[1]["bbox"]["AP"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
@pytest.mark.parametrize(("split", "image"), [("train", 0), ("val", 1)])
def test_if_one_of_two_processes_fails_both_end_with_its_message(
    split: str, image: int, tiny_yaml: Path, tiny_shapes: Path, tmp_path: Path
) -> None:
    """A training image that the first process draws before it trains; a validation image that the second one scores."""
    out, broken = tmp_path / "run", tmp_path / "broken"
    out.mkdir()
    (out / "config.yaml").write_text(tiny_yaml.read_text())
    (out / "model.safetensors").write_text("the work of weeks")
    shutil.copytree(tiny_shapes / "images" / split, broken)
    path = sorted(broken.iterdir())[image]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # whole enough to have a size
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    sets = [part for one in (*SETS, f"data.{split}.images={broken}") for part in ("--set", one)]
    process = subprocess.run(
        [sys.executable, *launcher, "tools/train_det.py", str(tiny_yaml), "--overwrite", *sets],
        cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert process.returncode != 0 and "exitcode  : 2" in process.stderr
    assert f"{path} cannot be read as an image" in process.stderr
    assert "bug in resnet-backbone" not in process.stderr
    if split == "train":  # the earlier run is back
        assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "model.safetensors"]
        assert (out / "model.safetensors").read_text() == "the work of weeks"
    else:  # the new run has replaced it, and its checkpoint is whole
        assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] == 2
        assert not (out / "run.lock").exists()
