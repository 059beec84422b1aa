"""COCO's twelve metrics, and AP by category, computed from COCO results.

Glossary: T IoU thresholds, P recall points, K categories, A area ranges, M limits on the detections per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from resnet_backbone.errors import InvalidValue
from tools.annotations.table import AnnotationTable, Id

from .backends import Pycocotools
from .detections import Results, box_detections, check_known, mask_detections, result_columns
from .ground_truth import GroundTruth, box_objects, load_ground_truth, mask_objects
from .interface import Backend, Curves, Kind, ToScore

KINDS: tuple[Kind, ...] = ("bbox", "segm")
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
    """Scores by kind, and what they are of.

    Attributes:
        kinds: scores of "bbox" and/or "segm".
        max_detections: detections of a class that were scored in an image.
        images: number of images that were scored; None if unknown.
        skipped_images: ids of the images of the split that were not scored.
        backend: name and version of the library that scored; "" if unknown.
    """

    kinds: dict[str, KindScores]
    max_detections: int = MAX_DETECTIONS
    images: int | None = None
    skipped_images: tuple[Id, ...] = ()
    backend: str = ""

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
            "backend", "max_detections", "images" and "skipped_images" as in this class, and, for each kind,
            "bbox": {"AP": ..., ..., "by_category": {name: {"AP": ..., "AP50": ..., "instances": ...}}}.
        """
        scored = {
            "backend": self.backend,
            "max_detections": self.max_detections,
            "images": self.images,
            "skipped_images": list(self.skipped_images),
        }
        return scored | {
            kind: {
                **scores.figures,
                "by_category": {name: dict(category) for name, category in scores.by_category.items()},
            }
            for kind, scores in self.kinds.items()
        }


def score_coco(
    ground_truth: GroundTruth,
    results: Results,
    *,
    kinds: Sequence[str] = ("bbox",),
    image_ids: Sequence[Id] | None = None,
    max_detections: int = MAX_DETECTIONS,
    backend: Backend | None = None,
) -> Scores:
    """Score results. The arguments are not changed, and nothing is printed.

    Args:
        ground_truth: annotations that were read, a COCO instances file, or its content.
        results: COCO results. Images without results count as images without detections.
        kinds: "bbox" (boxes) and/or "segm" (masks).
        image_ids: images to score; None for all images of the ground truth. The others are listed as skipped.
        max_detections: detections of a class that are scored in an image, best first. COCO's figures are defined with
            100; with another limit, the figures called AR100 and so on use that limit.
        backend: the library that scores, as from `choose_backend`; None for pycocotools.

    Returns:
        The scores of each kind.

    Raises:
        MissingFile: the ground truth does not exist.
        BadAnnotations: the ground truth cannot be used.
        InvalidValue: the results, `kinds` or `image_ids` cannot be used.
    """
    _check_kinds(kinds)
    backend = backend or Pycocotools()
    table = load_ground_truth(ground_truth)
    images = _select_images(table, image_ids)
    columns = result_columns(table, results)
    instances = _count_instances(table, images)
    by_kind: dict[str, KindScores] = {}
    for kind in (kind for kind in KINDS if kind in kinds):
        truth = mask_objects(table, images) if kind == "segm" else box_objects(table).of_images(images)
        found = mask_detections(columns, results, table) if kind == "segm" else box_detections(columns, results)
        size = table.sizes, len(table.class_names)
        curves = backend.curves(ToScore(kind, *size, images, max_detections, truth, found.of_images(images)))
        by_kind[kind] = KindScores(_figures(curves), _by_category(curves, table.class_names, instances))
    kept = set(images.tolist())
    skipped = tuple(image_id for i, image_id in enumerate(table.image_ids) if i not in kept)
    in_order = {kind: by_kind[kind] for kind in kinds}
    return Scores(in_order, max_detections, len(images), skipped, backend.label)


def _figures(curves: Curves) -> dict[str, float | None]:
    """The twelve figures; COCOeval.summarize computes AP for a limit of 100 detections only."""
    precision, recall = curves.precision, curves.recall  # (T, P, K, A, M), (T, K, A, M)
    values = [precision[..., 0, -1], precision[0, ..., 0, -1], precision[5, ..., 0, -1]]
    values += [precision[..., area, -1] for area in (1, 2, 3)]
    values += [recall[..., 0, limit] for limit in (0, 1, 2)]
    values += [recall[..., area, -1] for area in (1, 2, 3)]
    return {name: _mean(v) for name, v in zip(FIGURES, values, strict=True)}


def _by_category(curves: Curves, names: Sequence[str], instances: Sequence[int]) -> dict[str, CategoryScores]:
    scores: dict[str, CategoryScores] = {}
    for k, (name, count) in enumerate(zip(names, instances, strict=True)):
        values = curves.precision[:, :, k, 0, -1]  # all areas, the largest limit: (T, P)
        scores[name] = CategoryScores(AP=_mean(values), AP50=_mean(values[0]), instances=count)
    return scores


def _count_instances(table: AnnotationTable, images: np.ndarray) -> list[int]:
    """Ground-truth instances of each category in these images, without crowds."""
    counted = np.isin(table.images_of_rows(), images) & ~table.crowd[table.rows]
    counts: list[int] = np.bincount(table.labels[table.rows[counted]], minlength=len(table.class_names)).tolist()
    return counts


def _check_kinds(kinds: Sequence[str]) -> None:
    if isinstance(kinds, str) or not kinds or any(kind not in KINDS for kind in kinds):
        raise InvalidValue(f"kinds is {kinds!r}: give a tuple of one or both of {KINDS}")


def _select_images(table: AnnotationTable, image_ids: Sequence[Id] | None) -> np.ndarray:
    """Indices of the images to score, ascending."""
    if image_ids is None:
        return np.arange(len(table.image_ids))
    if not len(image_ids):  # COCOeval would score all images
        raise InvalidValue("image_ids is empty: give the ids of the images to score, or None for all of them")
    chosen = set(image_ids)
    check_known("image_ids", chosen - set(table.image_ids))
    return np.array([i for i, image_id in enumerate(table.image_ids) if image_id in chosen])


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    defined = values[values > -1]  # COCOeval gives -1 for undefined values
    return float(defined.mean()) if defined.size else None
