"""Every script in examples/ runs as its README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run_example(name: str, *arguments: object) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory, tiny_shapes: Path) -> tuple[Path, str]:
    """The run of train_on_your_data.py on a few shapes, and what the script printed."""
    folder = tmp_path_factory.mktemp("examples")

    def split(name: str) -> dict[str, str]:
        annotations = tiny_shapes / "annotations" / f"instances_{name}.json"
        return {"images": str(tiny_shapes / "images" / name), "annotations": str(annotations)}

    values = {
        "base": str(ROOT / "configs" / "demo_shapes.yaml"),
        "data": {"train": split("train"), "val": split("val"), "workers": 0},
        "model": {"pyramid_channels": 16, "box": {"hidden": 32}, "mask": {"channels": 16, "convs": 1}},
        "train": {"batch_size": 4, "device": "cpu", "precision": "fp32"},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    said = run_example("train_on_your_data.py", folder / "mine.yaml", f"out={folder / 'run'}", "schedule.iters=4")
    return folder / "run", said


def test_the_readme_lists_every_script() -> None:
    listed = re.findall(r"^\| `(\w+\.py)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_backbone_features(imagenet_weights: Path, coco_mini: Path) -> None:
    photo = sorted((coco_mini / "val2017").glob("*.jpg"))[0]
    said = run_example("backbone_features.py", imagenet_weights / "resnet18-imagenet.pth", photo)
    assert re.search(r"c5 \(1, 512, \d+, \d+\) stride 32", said)


def test_own_segmentation_head(imagenet_weights: Path) -> None:
    assert "logits (2, 5, 128, 160)" in run_example(
        "own_segmentation_head.py", imagenet_weights / "resnet18-imagenet.pth"
    )


def test_other_backbone() -> None:
    pytest.importorskip("timm")
    assert "'c5': (512, 32)" in run_example("other_backbone.py")


def test_train_on_your_data(trained_run: tuple[Path, str]) -> None:
    run, said = trained_run
    assert (run / "model.safetensors").is_file() and "'bbox': " in said and "'segm': " in said


def test_detect_objects(trained_run: tuple[Path, str], tiny_shapes: Path) -> None:
    photo = sorted((tiny_shapes / "images" / "val").glob("*.jpg"))[0]
    assert re.search(r"resnet18, fpn: \d+ detections", run_example("detect_objects.py", trained_run[0], photo))


def test_fine_tune(trained_run: tuple[Path, str]) -> None:
    said = run_example("fine_tune.py", trained_run[0])
    assert "box_head.logits.weight" in said and "step 2: loss" in said


def test_score(trained_run: tuple[Path, str]) -> None:
    said = run_example("score.py", trained_run[0])
    assert "bbox {'AP': " in said and "segm {'AP': " in said


def test_to_torchvision(trained_run: tuple[Path, str], tmp_path: Path) -> None:
    said = run_example("to_torchvision.py", trained_run[0], tmp_path / "theirs.pth")
    state = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert "5 classes and the background" in said and len(state["roi_heads.box_predictor.cls_score.bias"]) == 6
