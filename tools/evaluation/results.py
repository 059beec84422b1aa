"""Detections in COCO's result format.

R regions, K classes. Labels are 0..K-1 here, category ids in a results file: this is the door between them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from heads.masks import BitMasks
from heads.structures import Detections
from resnet_backbone.errors import InvalidValue


def coco_results(image_id: int, detections: Detections, category_ids: Sequence[int | None]) -> list[dict[str, Any]]:
    """One result per detection, in the detections' order.

    category_ids: (K,) the dataset's id for each label; None for a class that the dataset does not know, whose
    detections are left out. With masks, a result carries its box and its mask.
    """
    _check(image_id, detections, len(category_ids))
    # double: x2 - x1 of two float32 numbers is then exact, and so is the way back to x2
    boxes = detections.boxes.detach().cpu().double()
    corners = boxes.tolist()
    sides = (boxes[:, 2:] - boxes[:, :2]).tolist()
    scores = detections.scores.detach().cpu().tolist()
    labels = detections.labels.cpu().tolist()
    masks = detections.masks.to_rle() if isinstance(detections.masks, BitMasks) else None

    results: list[dict[str, Any]] = []
    for i, label in enumerate(labels):
        category_id = category_ids[label]
        if category_id is None:
            continue
        result = {
            "image_id": int(image_id),
            "category_id": int(category_id),
            "bbox": [*corners[i][:2], *sides[i]],
            "score": scores[i],
        }
        if masks is not None:
            result["segmentation"] = masks[i]
        results.append(result)
    return results


def write_results(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes JSON: a reader of `path` finds a whole file or the one before it, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside it: a rename is atomic within one file system only
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(json.dumps(list(results), allow_nan=False), encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _check(image_id: int, detections: Detections, num_classes: int) -> None:
    for name, values in (("boxes", detections.boxes), ("scores", detections.scores)):
        bad = sorted({index[0] for index in torch.nonzero(~torch.isfinite(values)).tolist()})
        if bad:
            raise InvalidValue(
                f"image {image_id}: {name} of detections {bad[:5]} are not finite ({len(bad)} in all): "
                "the model diverged or its weights are broken; look at its losses before scoring it"
            )
    if not isinstance(detections.masks, BitMasks | None):
        raise InvalidValue(
            f"image {image_id}: masks are {type(detections.masks).__name__}, wanted BitMasks in the "
            "image's own pixels: take the detections from Predictor, or paste the masks first"
        )
    labels = detections.labels
    outside = sorted(set(labels[(labels < 0) | (labels >= num_classes)].tolist()))
    if outside:
        raise InvalidValue(
            f"image {image_id}: labels {outside[:5]} are outside 0..{num_classes - 1}: "
            "category_ids must have one entry, an id or None, for each class of the model"
        )
