"""The examples in docs/hosts.md run unchanged, each in a fresh interpreter and an empty folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "hosts.md").read_text()
REQUIRED_PACKAGE = {
    "torchvision": "torchvision",
    "timm": "timm",
    "detectron2": "detectron2",
    "mmdetection": "mmengine",
    "transformers": "transformers",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "Other backbones in our detectors": "timm",
}


def examples() -> dict[str, str]:
    """The first Python example of every section, by the title of the section."""
    sections = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]
    first_examples = {}
    for section in sections:
        title, _, body = section.partition("\n")
        if code := re.search(r"```python\n(.*?)```", body, re.DOTALL):
            first_examples[title.strip()] = code[1]
    return first_examples


def test_every_host_has_an_example_of_at_most_25_lines() -> None:
    assert set(examples()) == set(REQUIRED_PACKAGE)
    for title, code in examples().items():
        assert len(code.strip().splitlines()) <= 25, title


@pytest.mark.parametrize("title", list(REQUIRED_PACKAGE))
def test_example_runs(title: str, imagenet_weights: Path, coco_mini: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(REQUIRED_PACKAGE[title]) is None:
        pytest.skip(f"{REQUIRED_PACKAGE[title]} is not installed")
    shutil.copy(imagenet_weights / "resnet18-imagenet.pth", tmp_path / "resnet18.pth")
    shutil.copy(sorted((coco_mini / "val2017").glob("*.jpg"))[0], tmp_path / "photo.jpg")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", examples()[title]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip()
