"""A detector's file: its weights, and what must travel with them (`resnet_backbone.weights.certificate`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from resnet_backbone import load_weights
from resnet_backbone.backbone import ResNetBody
from resnet_backbone.weights.certificate import (
    Fingerprint,
    certificate,
    check_fingerprint,
    generated_pixels,
    net_facts,
    on_cpu,
    sampled,
)
from resnet_backbone.weights.files import save_atomically
from resnet_backbone.weights.load import WeightFile, read_weights

from .box_head import BoxHeadSpec
from .build import DetectorRecipe, assemble, empty_backbone
from .conventions import CONVENTIONS, Conventions
from .detector import RCNN
from .mask_head import MaskHeadSpec
from .rpn import RPNSpec

__all__ = ["detector_content", "load_detector", "save_atomically", "save_detector"]

# where the heads are asked, in pixels of the generated image: within it, touching its sides, and of several sizes
BOXES = ((8.0, 8.0, 72.0, 56.0), (30.5, 20.25, 140.0, 110.0), (0.0, 0.0, 159.0, 119.0), (60.0, 40.0, 76.0, 52.0))


def detector_fingerprint(detector: RCNN) -> Fingerprint:
    """What every stage answers to a generated image, the heads on fixed boxes; nothing behind a suppression."""
    plain = on_cpu(detector)
    assert isinstance(plain.backbone, ResNetBody)
    boxes = [torch.tensor(BOXES)]
    with torch.inference_mode():
        stages = plain.backbone.all_levels(generated_pixels(plain.preprocess))
        levels = plain.neck({level: stages[level] for level in plain.backbone.out_levels})
        logits, deltas = plain.rpn.predict(levels)
        stages |= levels | {"rpn logits": torch.cat(logits, 1), "rpn deltas": torch.cat(deltas, 1)}
        stages["box regions"] = plain.box_regions(levels, boxes)
        stages["box logits"], stages["box deltas"] = plain.box_head(stages["box regions"])
        for regions_of, head in plain.instance_heads:
            stages["mask logits"] = head(regions_of(levels, boxes))
    return sampled(stages)


def detector_content(detector: RCNN, recipe: DetectorRecipe, source: str = "trained here") -> dict[str, Any]:
    """What a file holds: tensors under "model", plain values under "meta", readable with `weights_only=True`.

    source: whose weights these are. Raises TypeError for a backbone that is not ours, which no recipe can rebuild.
    """
    if not isinstance(detector.backbone, ResNetBody):
        raise TypeError(f"{type(detector.backbone).__name__} cannot be rebuilt from a recipe: save its state_dict()")
    state = detector.state_dict() | {f"background.{key}": rows for key, rows in detector.background.items()}
    meta = certificate(
        state,
        detector_fingerprint(detector),
        detector.preprocess,
        kind="detector",
        source=source,
        project=_project_of(recipe.conventions),
        net=net_facts(detector.backbone),
        recipe=asdict(recipe),
        class_names=list(detector.class_names),
    )
    return {"model": state, "meta": meta}


def _project_of(conventions: Conventions) -> str:
    same = (name for name, c in CONVENTIONS.items() if replace(c, norm_eps=conventions.norm_eps) == conventions)
    return next(same, "none of the known")


def save_detector(detector: RCNN, recipe: DetectorRecipe, path: str | PathLike[str], *, source: str) -> None:
    """Write a certified file, `.pth` or `.safetensors` by its name; see `detector_content`."""
    save_atomically(detector_content(detector, recipe, source), Path(path))


def load_detector(path: str | PathLike[str] | WeightFile) -> tuple[RCNN, DetectorRecipe]:
    """The detector of a certified file (a training run's, or convert_weights.py's), and its recipe.

    Raises FileNotFoundError, ValueError for a file that is damaged or no detector's, `CertificateMismatch` naming the
    tensor or the stage that is not what the certificate says, `WeightMismatch`.
    """
    if not isinstance(path, WeightFile) and not Path(path).is_file():
        raise FileNotFoundError(f"no detector at {path}: give a training run's folder or a file that it wrote")
    file = read_weights(path)
    if file.meta is None or file.meta["kind"] != "detector":
        raise ValueError(
            f"{file} holds no detector of ours with its certificate: train_det.py writes such files, and "
            "tools/convert_weights.py makes them of other projects' detectors"
        )
    recipe = recipe_from_dict(file.meta["recipe"])
    detector = assemble(recipe, len(file.meta["class_names"]), empty_backbone(recipe))
    load_weights(detector, file)
    check_fingerprint(detector_fingerprint(detector), file.meta["fingerprint"], str(file))
    return detector, recipe


def recipe_from_dict(values: Mapping[str, Any]) -> DetectorRecipe:
    """The inverse of `dataclasses.asdict`, also after a way through JSON, which knows no tuples."""
    values = dict(values)
    parts = {"rpn": RPNSpec, "box": BoxHeadSpec, "conventions": Conventions, "mask": MaskHeadSpec}
    for name, part in parts.items():
        if isinstance(values.get(name), Mapping):
            values[name] = part(**{key: _tuples(value) for key, value in values[name].items()})
    return DetectorRecipe(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
