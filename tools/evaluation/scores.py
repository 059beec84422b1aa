"""COCO's twelve figures, and AP by category, from a results list.

T thresholds of IoU, P points of recall, K categories, A ranges of area, M limits of detections an image.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbone.errors import InvalidValue
from tools.evaluation.ground_truth import load_truth, to_rle

KINDS = ("bbox", "segm")
# In the order of COCOeval.stats: s, m, l are areas below 32^2, up to 96^2 and above.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CategoryScores(TypedDict):
    """AP and AP50 as fractions, None where the images show no instance; instances counts no crowds."""

    AP: float | None
    AP50: float | None
    instances: int


@dataclass(frozen=True)
class KindScores:
    """figures: those of FIGURES, as fractions, None where undefined. by_category: in the dataset's order."""

    figures: dict[str, float | None]
    by_category: dict[str, CategoryScores]


@dataclass(frozen=True)
class Scores:
    kinds: dict[str, KindScores]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """{"bbox": {"AP": ..., ..., "by_category": {name: {"AP": ..., "AP50": ..., "instances": ...}}}}"""
        return {
            kind: {
                **scores.figures,
                "by_category": {name: dict(found) for name, found in scores.by_category.items()},
            }
            for kind, scores in self.kinds.items()
        }


def score_coco(
    ground_truth: Path | str | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    kinds: Sequence[str] = ("bbox",),
    image_ids: Sequence[int] | None = None,
) -> Scores:
    """Scores results in COCO's format with pycocotools; neither argument is changed.

    kinds: "bbox" and/or "segm". image_ids: score these images alone, the whole ground truth without them.
    An image without results is one where nothing was found.
    """
    _check_kinds(kinds)
    truth = load_truth(ground_truth)
    chosen = _choose_images(truth, image_ids)
    _check_results(truth, results)
    return Scores({kind: _score_kind(kind, truth, results, chosen) for kind in kinds})


def _score_kind(
    kind: str, truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: list[int]
) -> KindScores:
    images = {image["id"]: image for image in truth["images"]}
    if kind == "segm":
        _check_segmentations(truth, set(image_ids))
        found = [_mask_result(i, result, images[result["image_id"]]) for i, result in enumerate(results)]
    else:
        found = [_box_result(i, result) for i, result in enumerate(results)]
    with contextlib.redirect_stdout(io.StringIO()):
        # COCOeval writes into annotations, so that each kind gets copies of its own
        evaluation = COCOeval(
            _indexed({**truth, "annotations": [dict(a) for a in truth["annotations"]]}),
            _indexed({**truth, "annotations": found}),
            kind,
        )
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: _defined(value) for name, value in zip(FIGURES, evaluation.stats, strict=True)}
    return KindScores(figures, _by_category(truth, evaluation, set(image_ids)))


def _by_category(truth: Mapping[str, Any], evaluation: COCOeval, image_ids: set[int]) -> dict[str, CategoryScores]:
    counts = Counter(a["category_id"] for a in truth["annotations"] if a["image_id"] in image_ids and not a["iscrowd"])
    precision = evaluation.eval["precision"]  # (T, P, K, A, M)
    column = {category_id: k for k, category_id in enumerate(evaluation.params.catIds)}
    scores: dict[str, CategoryScores] = {}
    for category in truth["categories"]:
        mine = precision[:, :, column[category["id"]], 0, -1]  # any area, 100 detections: (T, P)
        scores[category["name"]] = CategoryScores(AP=_mean(mine), AP50=_mean(mine[0]), instances=counts[category["id"]])
    return scores


def _mask_result(number: int, result: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """The result by its mask alone: COCO.loadRes would take the box's area where a result carries both."""
    if not isinstance(result.get("segmentation"), Mapping):
        raise InvalidValue(
            f"result {number} (image {result['image_id']}) has no segmentation in runs (RLE), which "
            "'segm' needs: write results with masks, or score kinds=('bbox',)"
        )
    rle = to_rle(result["segmentation"], image)
    size = [image.get("height"), image.get("width")]
    if list(rle["size"]) != size:  # COCOeval would take it for a miss without a word
        raise InvalidValue(
            f"result {number} has a mask of [height, width] {list(rle['size'])}, image {image['id']} is "
            f"{size}: paste masks in the image's own pixels"
        )
    return {**_common(number, result), "segmentation": rle, "area": float(coco_mask.area(rle))}


def _box_result(number: int, result: Mapping[str, Any]) -> dict[str, Any]:
    box = result.get("bbox")
    if box is None or len(box) != 4 or not all(map(math.isfinite, box)):
        raise InvalidValue(f"result {number} (image {result['image_id']}) has bbox {box}, wanted [x, y, w, h]")
    return {**_common(number, result), "bbox": list(box), "area": float(box[2]) * float(box[3])}


def _common(number: int, result: Mapping[str, Any]) -> dict[str, Any]:
    same = {field: result[field] for field in ("image_id", "category_id", "score")}
    return {**same, "id": number + 1, "iscrowd": 0}


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _check_kinds(kinds: Sequence[str]) -> None:
    if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
        raise InvalidValue(f"kinds is {kinds!r}, wanted one or both of {KINDS}, as a tuple")


def _choose_images(truth: Mapping[str, Any], image_ids: Sequence[int] | None) -> list[int]:
    known = {image["id"] for image in truth["images"]}
    if image_ids is None:
        return sorted(known)
    if not len(image_ids):  # COCOeval would take an empty choice for every image
        raise InvalidValue("image_ids is empty: name the images to score, or give None for all of them")
    _refuse_strangers("image_ids names images", set(image_ids) - known)
    return sorted(set(image_ids))


def _check_results(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    for number, result in enumerate(results):
        missing = {"image_id", "category_id", "score"} - result.keys()
        if missing or not math.isfinite(result["score"]):
            raise InvalidValue(
                f"result {number} is without {sorted(missing) or 'a finite score'}: give COCO's result format"
            )
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    _refuse_strangers("the results name images", {r["image_id"] for r in results} - images)
    _refuse_strangers("the results name categories", {r["category_id"] for r in results} - categories)


def _refuse_strangers(who: str, strangers: set[int]) -> None:
    if strangers:
        raise InvalidValue(
            f"{who} {sorted(strangers)[:5]} that the ground truth lacks ({len(strangers)} in all): "
            "score the results against the dataset that they were made on"
        )


def _check_segmentations(truth: Mapping[str, Any], image_ids: set[int]) -> None:
    for annotation in truth["annotations"]:
        if annotation["image_id"] in image_ids and not annotation.get("segmentation"):
            raise InvalidValue(
                f"an annotation of image {annotation['image_id']}, bbox {annotation['bbox']}, has no "
                "segmentation, which 'segm' needs: add it, or score kinds=('bbox',)"
            )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _defined(value: float) -> float | None:
    return None if value < 0 else float(value)  # -1 is COCOeval's word for undefined
