"""COCO's twelve metrics, and AP by category, computed from COCO results.

Glossary: T IoU thresholds, P recall points, K categories, A area ranges, M limits on the detections per image.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbone.errors import InvalidValue
from tools.annotations.table import Id
from tools.evaluation.ground_truth import GroundTruth, load_ground_truth, to_rle

KINDS = ("bbox", "segm")
MAX_DETECTIONS = 100  # detections of a class in an image that COCO scores
# in the order of COCOeval.stats; s, m, l: areas below 32^2, up to 96^2 and above, square pixels
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class CategoryScores(TypedDict):
    """Scores of one category.

    Attributes:
        AP: average precision over the IoU thresholds 0.5 to 0.95, 0..1; None if the images have no instance.
        AP50: average precision at IoU 0.5, 0..1; None if the images have no instance.
        instances: number of ground-truth instances, without crowds.
    """

    AP: float | None
    AP50: float | None
    instances: int


@dataclass(frozen=True)
class KindScores:
    """Scores of boxes, or of masks.

    Attributes:
        figures: value of each of `FIGURES`, 0..1; None if undefined.
        by_category: scores by category name, in the order of the ground truth.
    """

    figures: dict[str, float | None]
    by_category: dict[str, CategoryScores]


@dataclass(frozen=True)
class Scores:
    """Scores by kind.

    Attributes:
        kinds: scores of "bbox" and/or "segm".
        max_detections: detections of a class that were scored in an image.
    """

    kinds: dict[str, KindScores]
    max_detections: int = MAX_DETECTIONS

    def label(self, figure: str) -> str:
        """Name a figure; one that is not COCO's says so.

        Args:
            figure: one of `FIGURES`.

        Returns:
            The name, with the limit on detections if it is not COCO's.
        """
        if self.max_detections == MAX_DETECTIONS:
            return figure
        return f"{figure} with up to {self.max_detections} detections of a class (not COCO's)"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON's types.

        Returns:
            {"bbox": {"AP": ..., ..., "by_category": {name: {"AP": ..., "AP50": ..., "instances": ...}}}}, and
            "max_detections" if the limit is not COCO's.
        """
        limit = {} if self.max_detections == MAX_DETECTIONS else {"max_detections": self.max_detections}
        return limit | {
            kind: {
                **scores.figures,
                "by_category": {name: dict(category) for name, category in scores.by_category.items()},
            }
            for kind, scores in self.kinds.items()
        }


def score_coco(
    ground_truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    *,
    kinds: Sequence[str] = ("bbox",),
    image_ids: Sequence[Id] | None = None,
    max_detections: int = MAX_DETECTIONS,
) -> Scores:
    """Score results with pycocotools. The arguments are not changed, and nothing is printed.

    Args:
        ground_truth: annotations that were read, a COCO instances file, or its content.
        results: COCO results. Images without results count as images without detections.
        kinds: "bbox" (boxes) and/or "segm" (masks).
        image_ids: images to score; None for all images of the ground truth.
        max_detections: detections of a class that are scored in an image, best first. COCO's figures are defined with
            100; with another limit, the figures called AR100 and so on use that limit.

    Returns:
        The scores of each kind.

    Raises:
        MissingFile: the ground truth does not exist.
        BadAnnotations: the ground truth cannot be used.
        InvalidValue: the results, `kinds` or `image_ids` cannot be used.
    """
    _check_kinds(kinds)
    content = load_ground_truth(ground_truth, segmentations="segm" in kinds)
    selected_ids = _select_images(content, image_ids)
    _check_results(content, results)
    by_kind = {kind: _score_kind(kind, content, results, selected_ids, max_detections) for kind in kinds}
    return Scores(by_kind, max_detections)


def _score_kind(
    kind: str,
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    image_ids: list[Id],
    max_detections: int,
) -> KindScores:
    images = {image["id"]: image for image in ground_truth["images"]}
    if kind == "segm":
        _check_segmentations(ground_truth, set(image_ids))
        detections = [_mask_result(i, result, images[result["image_id"]]) for i, result in enumerate(results)]
    else:
        detections = [_box_result(i, result) for i, result in enumerate(results)]
    # COCOeval writes into annotations: each kind gets its own copies
    annotations = [dict(annotation) for annotation in ground_truth["annotations"]]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _indexed({**ground_truth, "annotations": annotations}),
            _indexed({**ground_truth, "annotations": detections}),
            kind,
        )
        evaluation.params.imgIds = image_ids
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return KindScores(_figures(evaluation), _by_category(ground_truth, evaluation, set(image_ids)))


def _figures(evaluation: COCOeval) -> dict[str, float | None]:
    """The twelve figures; COCOeval.summarize computes AP for a limit of 100 detections only."""
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]  # (T, P, K, A, M), (T, K, A, M)
    values = [precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1]]
    values += [precision[..., area, -1] for area in (1, 2, 3)]
    values += [recall[..., 0, limit] for limit in (0, 1, 2)]
    values += [recall[..., area, -1] for area in (1, 2, 3)]
    return {name: _mean(v) for name, v in zip(FIGURES, values, strict=True)}


def _by_category(
    ground_truth: Mapping[str, Any], evaluation: COCOeval, image_ids: set[Id]
) -> dict[str, CategoryScores]:
    scored = [a for a in ground_truth["annotations"] if a["image_id"] in image_ids and not a["iscrowd"]]
    counts = Counter(annotation["category_id"] for annotation in scored)
    precision = evaluation.eval["precision"]  # (T, P, K, A, M)
    column = {category_id: k for k, category_id in enumerate(evaluation.params.catIds)}
    scores: dict[str, CategoryScores] = {}
    for category in ground_truth["categories"]:
        category_id = category["id"]
        values = precision[:, :, column[category_id], 0, -1]  # all areas, 100 detections per image: (T, P)
        scores[category["name"]] = CategoryScores(
            AP=_mean(values), AP50=_mean(values[0]), instances=counts[category_id]
        )
    return scores


def _mask_result(number: int, result: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the area of its mask: COCO.loadRes would take the area of the box if there are both."""
    if not isinstance(result.get("segmentation"), Mapping):
        raise InvalidValue(
            f"result {number} (image {result['image_id']}) has no segmentation as RLE, which 'segm' needs: "
            "write results with masks, or score kinds=('bbox',)"
        )
    rle = to_rle(result["segmentation"], image)
    size = [image.get("height"), image.get("width")]
    if list(rle["size"]) != size:  # COCOeval would silently count it as a false positive
        raise InvalidValue(
            f"result {number} has a mask of [height, width] {list(rle['size'])}, image {image['id']} is "
            f"{size}: paste masks into the image before writing results"
        )
    return {**_common(number, result), "segmentation": rle, "area": float(coco_mask.area(rle))}


def _box_result(number: int, result: Mapping[str, Any]) -> dict[str, Any]:
    box = result.get("bbox")
    if box is None or len(box) != 4 or not all(map(math.isfinite, box)):
        raise InvalidValue(
            f"result {number} (image {result['image_id']}) has bbox {box}: give finite [x, y, width, height]"
        )
    return {**_common(number, result), "bbox": list(box), "area": float(box[2]) * float(box[3])}


def _common(number: int, result: Mapping[str, Any]) -> dict[str, Any]:
    copied = {field: result[field] for field in ("image_id", "category_id", "score")}
    return {**copied, "id": number + 1, "iscrowd": 0}


def _indexed(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _check_kinds(kinds: Sequence[str]) -> None:
    if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
        raise InvalidValue(f"kinds is {kinds!r}: give a tuple of one or both of {KINDS}")


def _select_images(ground_truth: Mapping[str, Any], image_ids: Sequence[Id] | None) -> list[Id]:
    known_ids = {image["id"] for image in ground_truth["images"]}
    if image_ids is None:
        return sorted(known_ids)
    if not len(image_ids):  # COCOeval would score all images
        raise InvalidValue("image_ids is empty: give the ids of the images to score, or None for all of them")
    _check_known("image_ids", set(image_ids) - known_ids)
    return sorted(set(image_ids))


def _check_results(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    for number, result in enumerate(results):
        missing = {"image_id", "category_id", "score"} - result.keys()
        if missing or not math.isfinite(result["score"]):
            raise InvalidValue(
                f"result {number} lacks {sorted(missing) or 'a finite score'}: give results in COCO's format"
            )
    image_ids = {image["id"] for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    _check_known("image ids of the results", {result["image_id"] for result in results} - image_ids)
    _check_known("category ids of the results", {result["category_id"] for result in results} - category_ids)


def _check_known(what: str, unknown_ids: set[Id]) -> None:
    if unknown_ids:
        raise InvalidValue(
            f"{what}: {sorted(unknown_ids, key=str)[:5]} are not in the ground truth ({len(unknown_ids)} in all): "
            "use the data set that the results were made on"
        )


def _check_segmentations(ground_truth: Mapping[str, Any], image_ids: set[Id]) -> None:
    for annotation in ground_truth["annotations"]:
        if annotation["image_id"] in image_ids and not annotation.get("segmentation"):
            raise InvalidValue(
                f"an annotation of image {annotation['image_id']}, bbox {annotation['bbox']}, has no "
                "segmentation, which 'segm' needs: add it, or score kinds=('bbox',)"
            )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    defined = values[values > -1]  # COCOeval gives -1 for undefined values
    return float(defined.mean()) if defined.size else None
