"""Detections in COCO's result format. Labels 0..K-1 become category ids here.

Glossary: R detections of one image, K classes.
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
from tools.annotations.table import Id


def coco_results(image_id: Id, detections: Detections, category_ids: Sequence[Id | None]) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO results.

    Args:
        image_id: image id, as in the annotations.
        detections: R detections; masks are `BitMasks` or None.
        category_ids: K category ids by label; None for a class that the data set lacks.

    Returns:
        One result per detection, in the same order, without those of classes that the data set lacks. A result has
        "image_id", "category_id", "bbox" (x, y, width, height), "score", and "segmentation" (RLE) if there are masks.

    Raises:
        InvalidValue: boxes or scores are not finite, masks are not pasted into the image, or a label is not in 0..K-1.
    """
    _check(image_id, detections, len(category_ids))
    # float64 keeps the difference of two float32 numbers, so that x1 + width gives x2 again
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
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [*corners[i][:2], *sides[i]],
            "score": scores[i],
        }
        if masks is not None:
            result["segmentation"] = masks[i]
        results.append(result)
    return results


def write_results(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Write results as JSON. The file is replaced atomically: readers never find a part of it.

    Args:
        path: file to write; its folder is created.
        results: COCO results.

    Raises:
        ValueError: a number is not finite.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder: a rename is atomic only within one file system
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(list(results), allow_nan=False), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check(image_id: Id, detections: Detections, num_classes: int) -> None:
    for name, values in (("boxes", detections.boxes), ("scores", detections.scores)):
        not_finite = sorted({index[0] for index in torch.nonzero(~torch.isfinite(values)).tolist()})
        if not_finite:
            raise InvalidValue(
                f"image {image_id}: {name} of detections {not_finite[:5]} are not finite ({len(not_finite)} in all): "
                "the model diverged or its weights are broken; check the losses of its training"
            )
    if not isinstance(detections.masks, BitMasks | None):
        raise InvalidValue(
            f"image {image_id}: masks are {type(detections.masks).__name__}, but must be BitMasks of the image's size: "
            "use Predictor, or paste the masks into the image first"
        )
    labels = detections.labels
    outside = sorted(set(labels[(labels < 0) | (labels >= num_classes)].tolist()))
    if outside:
        raise InvalidValue(
            f"image {image_id}: labels {outside[:5]} are outside 0..{num_classes - 1}: "
            "give category_ids one entry, an id or None, for each class of the model"
        )
