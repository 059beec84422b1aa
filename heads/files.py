"""A detector's file: its weights, and what must travel with them: recipe, `Preprocess`, class names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from resnet_backbone import load_weights
from resnet_backbone.weights.load import read_file

from .box_head import BoxHeadSpec
from .build import DetectorRecipe, adopt, assemble, empty_backbone
from .conventions import Conventions
from .detector import RCNN
from .mask_head import MaskHeadSpec
from .rpn import RPNSpec


def detector_content(detector: RCNN, recipe: DetectorRecipe) -> dict[str, Any]:
    """What a file holds: tensors under "model", plain values under "meta"; readable with `weights_only=True`."""
    meta = {
        "recipe": asdict(recipe),
        "class_names": list(detector.class_names),
        "preprocess": asdict(detector.preprocess),
    }
    return {"model": detector.state_dict(), "meta": meta}


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write beside, flush to the disk, rename: at any moment `path` is a whole file, the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with open(draft, "wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def load_detector(path: str | PathLike[str]) -> tuple[RCNN, DetectorRecipe]:
    """The detector that a training run wrote, with its weights, preprocessing and class names, and its recipe.

    Raises FileNotFoundError, ValueError for a file that is damaged or no detector's, `WeightMismatch`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no detector at {path}: give a training run's folder or a file that it wrote")
    content = read_file(path)
    if not isinstance(content, Mapping) or not {"model", "meta"} <= set(content):
        raise ValueError(
            f"{path} holds no detector of ours (a file with 'model' and 'meta'): was it written by train_det.py?"
        )
    meta = content["meta"]
    recipe = recipe_from_dict(meta["recipe"])
    detector = assemble(recipe, len(meta["class_names"]), empty_backbone(recipe))
    load_weights(detector, content["model"])
    adopt(detector, meta)
    return detector, recipe


def recipe_from_dict(values: Mapping[str, Any]) -> DetectorRecipe:
    """The inverse of `dataclasses.asdict`."""
    values = dict(values)
    parts = {"rpn": RPNSpec, "box": BoxHeadSpec, "conventions": Conventions, "mask": MaskHeadSpec}
    for name, part in parts.items():
        if isinstance(values.get(name), Mapping):
            values[name] = part(**values[name])
    return DetectorRecipe(**values)
