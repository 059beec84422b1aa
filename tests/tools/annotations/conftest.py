"""The one-image files of shared/cases: a base with one change each."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SHARED_CASES = Path(__file__).parents[4] / "shared" / "cases" / "annotations.json"
CASES: dict[str, Any] = json.loads(SHARED_CASES.read_text()) if SHARED_CASES.is_file() else {"base": {}, "cases": []}
needs_cases = pytest.mark.skipif(not CASES["cases"], reason="needs ../shared/cases/annotations.json beside the project")


def make_case(case: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write a case with its image; returns the image folder and the annotation file."""
    content = copy.deepcopy(CASES["base"])
    image, annotation = content["images"][0], content["annotations"][0]
    image |= case.get("image", {})
    annotation |= case.get("annotation", {})
    content["annotations"] += case.get("more_annotations", [])
    if "categories" in case:
        content["categories"] = case["categories"]
    content |= case.get("top", {})
    images = folder / "train"
    images.mkdir(parents=True)
    name = {"a%20b.png": "a b.png"}.get(image["file_name"], "1.png")
    Image.new("RGB", (64, 48), (90, 120, 60)).save(images / name)
    path = folder / "instances.json"
    path.write_text(json.dumps(content).replace('"NaN"', "NaN"))
    return images, path
