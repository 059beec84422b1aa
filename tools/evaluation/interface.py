"""The interface of scoring: what every backend takes, as columns, and what it returns.

Ids of images and categories, which may be numbers or texts, are indices here.

Glossary: N images, K categories, R objects or detections; T IoU thresholds, P recall points, A area ranges, M limits on
the detections of a category in an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Kind = Literal["bbox", "segm"]


@dataclass(frozen=True)
class Objects:
    """R ground-truth objects, or R detections.

    Attributes:
        images: (R,) int64, index of the image, 0..N-1.
        categories: (R,) int64, index of the category, 0..K-1.
        boxes: (R, 4) float64 x, y, width, height, pixels.
        areas: (R,) float64, square pixels; by its area an object is small, medium or large.
        crowd: (R,) bool; detections in a crowd count neither as correct nor as wrong. Detections are no crowds.
        scores: (R,) float64; 1 for ground truth.
        masks: R outlines in COCO's form (polygons or run lengths); None if boxes are scored.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    scores: np.ndarray
    masks: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def of_images(self, images: np.ndarray) -> Objects:
        """The objects of some images.

        Args:
            images: indices of the images.

        Returns:
            These objects, in the same order.
        """
        kept = np.flatnonzero(np.isin(self.images, images))
        if len(kept) == len(self):
            return self
        masks = None if self.masks is None else [self.masks[i] for i in kept.tolist()]
        columns = ("images", "categories", "boxes", "areas", "crowd", "scores")
        return Objects(**{name: getattr(self, name)[kept] for name in columns}, masks=masks)


@dataclass(frozen=True)
class ToScore:
    """Ground truth and detections of one kind.

    Attributes:
        kind: "bbox" or "segm".
        sizes: (N, 2) int64 height, width, pixels; 0 if unknown.
        num_categories: K.
        images: (S,) int64, the images to score, ascending indices.
        max_detections: detections of a category that are scored in an image, best first; at least 10.
        truth: objects of the images to score.
        detections: detections in the images to score.
    """

    kind: Kind
    sizes: np.ndarray
    num_categories: int
    images: np.ndarray
    max_detections: int
    truth: Objects
    detections: Objects


@dataclass(frozen=True)
class Curves:
    """What a backend computes; -1 stands for an undefined value, as in COCOeval.

    Attributes:
        precision: (T, P, K, A, M) float64, 0..1.
        recall: (T, K, A, M) float64, 0..1.
        scores: (T, P, K, A, M) float64, the score at which a recall point is reached.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


class Backend(Protocol):
    """A library that scores."""

    @property
    def label(self) -> str:
        """Its name and version, such as "pycocotools 2.0.11"."""

    def curves(self, data: ToScore) -> Curves:
        """Match detections with ground truth, and compute precision and recall as COCOeval does.

        Args:
            data: what to score; it is not changed.

        Returns:
            The arrays, for the limits 1, 10 and `max_detections`.
        """
