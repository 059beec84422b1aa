"""Augmentation of an image with its boxes and masks: horizontal flip and multi-scale resize, by albumentations.

Coordinates: albumentations flips keypoints as pixel centres (x -> W - 1 - x) but boxes as edges (x -> W - x). Polygon
vertices are edges too. They are shifted by -0.5 px before the transforms and by +0.5 px after them; without the shift,
a flip would move each mask by one pixel relative to its box.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would look for a newer version online
import albumentations as A
import cv2
import numpy as np
import torch

from heads.images import resize, resized_size
from heads.masks import BitMasks, PolygonMasks, decode_segmentation
from heads.structures import ImageSize, Targets

from .coco import ImageRecord


class ShortSide(A.DualTransform):
    """Resize the short side to a length drawn from a list, with a limit on the long side.

    The resize is the one used for inference (`heads.images.resize`).
    """

    def __init__(self, short_side_px: Sequence[int], long_side_px: int, how: str) -> None:
        """Create the transform; it is always applied.

        Args:
            short_side_px: lengths to draw from, pixels; one is drawn for each image.
            long_side_px: maximum length of the long side, pixels.
            how: interpolation, as `Preprocess.resize`.
        """
        super().__init__(p=1.0)
        self.how = how
        self.short_side_px, self.long_side_px = tuple(short_side_px), long_side_px

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the short side; called by albumentations once per image."""
        height, width = params["shape"][:2]
        # not py_random: albumentations gives it the same seed in every transform, so size and flip would be correlated
        short_side_px = int(self.random_generator.choice(self.short_side_px))
        original = ImageSize(height=height, width=width)
        size = resized_size(original, short_side_px=short_side_px, long_side_px=self.long_side_px, how=self.how)
        return {"original": original, "size": size}

    def apply(self, img: np.ndarray, size: ImageSize, **params: Any) -> np.ndarray:
        """Resize the image."""
        return resize(img, size, how=self.how)

    def apply_to_mask(self, mask: np.ndarray, size: ImageSize, **params: Any) -> np.ndarray:
        """Resize a mask, by nearest neighbour."""
        return cv2.resize(mask, (size.width, size.height), interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Return the boxes unchanged: albumentations passes them as fractions of the image."""
        return bboxes

    def apply_to_keypoints(
        self, keypoints: np.ndarray, original: ImageSize, size: ImageSize, **params: Any
    ) -> np.ndarray:
        """Scale keypoints, which are relative to pixel centres."""
        scale = np.array([size.width / original.width, size.height / original.height])
        resized = keypoints.copy()
        resized[:, :2] = (keypoints[:, :2] + 0.5) * scale - 0.5
        return resized


@dataclass(frozen=True)
class Augment:
    """Random horizontal flip and multi-scale resize. The result depends only on the arguments of the call.

    Attributes:
        short_side_px: lengths to draw the short side from, pixels.
        long_side_px: maximum length of the long side, pixels.
        flip_probability: probability of a horizontal flip.
        masks: whether targets have masks: `PolygonMasks` if all objects of the image are polygons, `BitMasks` if any
            of them is an RLE.
        resize: interpolation, as `Preprocess.resize`.
    """

    short_side_px: tuple[int, ...]
    long_side_px: int
    flip_probability: float
    masks: bool
    resize: str = "pillow"

    def __call__(self, image: np.ndarray, record: ImageRecord, seed: int) -> tuple[torch.Tensor, Targets]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            record: the image's annotations; R objects.
            seed: seed of the flip and of the size.

        Returns:
            The image, (3, h, w) uint8 (float32 if `resize` is "torch"), and its targets with R boxes.
        """
        has_polygons = all(isinstance(segmentation, tuple) for segmentation in record.segmentations)
        objects = record.segmentations if self.masks and has_polygons else ()
        vertices = [polygon for polygons in objects for polygon in polygons]
        inputs: dict[str, Any] = {
            "image": image,
            "bboxes": record.boxes,
            "rows": np.arange(len(record.boxes)),
            "keypoints": np.concatenate(vertices) - 0.5 if vertices else np.zeros((0, 2)),
        }
        if self.masks and not has_polygons:
            size = record.size
            inputs["masks"] = [
                decode_segmentation(coco_form(s), size.height, size.width).astype(np.uint8)
                for s in record.segmentations
            ]
        pipeline = self._pipeline()
        pipeline.set_random_seed(seed)
        outputs = pipeline(**inputs)
        rows = np.asarray(outputs["rows"], dtype=np.int64)
        masks: PolygonMasks | BitMasks | None = None
        if self.masks and has_polygons:
            masks = _regroup(np.asarray(outputs["keypoints"], dtype=np.float64).reshape(-1, 2) + 0.5, objects, rows)
        elif self.masks:
            masks = BitMasks(torch.from_numpy(np.stack(outputs["masks"])[rows].astype(bool)))
        boxes = torch.from_numpy(np.asarray(outputs["bboxes"], dtype=np.float32).reshape(-1, 4))
        targets = Targets(boxes, torch.from_numpy(record.labels[rows]), masks)
        return torch.from_numpy(np.ascontiguousarray(outputs["image"].transpose(2, 0, 1))), targets

    def _pipeline(self) -> A.Compose:
        return A.Compose(
            [A.HorizontalFlip(p=self.flip_probability), ShortSide(self.short_side_px, self.long_side_px, self.resize)],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["rows"]),
            keypoint_params=A.KeypointParams(format="xy", remove_invisible=False),
        )


def coco_form(segmentation: Any) -> Any:
    """Convert an outline of `ImageRecord` to COCO's form.

    Args:
        segmentation: polygons (V, 2), or COCO's RLE.

    Returns:
        Flat lists for polygons; an RLE as it is.
    """
    if isinstance(segmentation, tuple):
        return [polygon.reshape(-1).tolist() for polygon in segmentation]
    return segmentation


def _regroup(vertices: np.ndarray, objects: Sequence[tuple[np.ndarray, ...]], rows: np.ndarray) -> PolygonMasks:
    """Split concatenated vertices (V, 2) into the polygons of `objects`, and keep the objects in `rows`."""
    ends = np.cumsum([len(polygon) for polygons in objects for polygon in polygons])
    polygons = iter(np.split(vertices, ends[:-1]))
    regrouped = [tuple(next(polygons) for _ in original) for original in objects]
    return PolygonMasks(tuple(regrouped[row] for row in rows))
