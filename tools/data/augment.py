"""Augmentation by albumentations, on image, boxes and outlines together.

Coordinates: albumentations flips points as pixel centres (x -> W - 1 - x) but boxes as edges (x -> W - x). Polygon
vertices are edges too, so they travel half a pixel lower and come back: otherwise every flip would move a mask by one
pixel against its box.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
import albumentations as A
import cv2
import numpy as np
import torch

from heads.images import resize, resized_size
from heads.masks import BitMasks, PolygonMasks, decode_segmentation, polygons_from
from heads.structures import ImageSize, Targets

from .coco import ImageRecord


class ShortSide(A.DualTransform):
    """Brings the short side to one of `short_side_px`, drawn anew each time, with a cap on the long side, by the resize
    that inference uses."""

    def __init__(self, short_side_px: Sequence[int], long_side_px: int, how: str) -> None:
        super().__init__(p=1.0)
        self.how = how
        self.short_side_px, self.long_side_px = tuple(short_side_px), long_side_px

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        # not py_random: each transform's is seeded alike, so that the size would follow from the flip's own draw
        short = int(self.random_generator.choice(self.short_side_px))
        now = ImageSize(height=height, width=width)
        size = resized_size(now, short_side_px=short, long_side_px=self.long_side_px, how=self.how)
        return {"now": now, "size": size}

    def apply(self, img: np.ndarray, size: ImageSize, **params: Any) -> np.ndarray:
        return resize(img, size, how=self.how)

    def apply_to_mask(self, mask: np.ndarray, size: ImageSize, **params: Any) -> np.ndarray:
        return cv2.resize(mask, (size.width, size.height), interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        return bboxes  # fractions of the image

    def apply_to_keypoints(self, keypoints: np.ndarray, now: ImageSize, size: ImageSize, **params: Any) -> np.ndarray:
        scale = np.array([size.width / now.width, size.height / now.height])
        moved = keypoints.copy()
        moved[:, :2] = (keypoints[:, :2] + 0.5) * scale - 0.5
        return moved


@dataclass(frozen=True)
class Augment:
    """Flip and multi-scale resize. What is drawn is a function of the seed given to each call, and of nothing else.

    masks: carry outlines; an image whose objects are all polygons keeps polygons, one with any RLE gets bitmaps.
    resize: as `Preprocess.resize`.
    """

    short_side_px: tuple[int, ...]
    long_side_px: int
    flip_probability: float
    masks: bool
    resize: str = "pillow"

    def __call__(self, image: np.ndarray, record: ImageRecord, seed: int) -> tuple[torch.Tensor, Targets]:
        """image: (H, W, 3) uint8 -> (3, h, w) uint8 (float32 where `resize` is "torch") and its targets."""
        polygonal = all(isinstance(s, list) for s in record.segmentations)
        flat = [polygons_from(s) for s in record.segmentations] if self.masks and polygonal else []
        vertices = [polygon for polygons in flat for polygon in polygons]
        data: dict[str, Any] = {
            "image": image,
            "bboxes": record.boxes,
            "rows": np.arange(len(record.boxes)),
            "keypoints": np.concatenate(vertices) - 0.5 if vertices else np.zeros((0, 2)),
        }
        if self.masks and not polygonal:
            size = record.size
            data["masks"] = [
                decode_segmentation(s, size.height, size.width).astype(np.uint8) for s in record.segmentations
            ]
        pipeline = self._pipeline()
        pipeline.set_random_seed(seed)
        out = pipeline(**data)
        rows = np.asarray(out["rows"], dtype=np.int64)
        masks: PolygonMasks | BitMasks | None = None
        if self.masks and polygonal:
            masks = _regroup(np.asarray(out["keypoints"], dtype=np.float64).reshape(-1, 2) + 0.5, flat, rows)
        elif self.masks:
            masks = BitMasks(torch.from_numpy(np.stack(out["masks"])[rows].astype(bool)))
        boxes = torch.from_numpy(np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4))
        targets = Targets(boxes, torch.from_numpy(record.labels[rows]), masks)
        return torch.from_numpy(np.ascontiguousarray(out["image"].transpose(2, 0, 1))), targets

    def _pipeline(self) -> A.Compose:
        return A.Compose(
            [A.HorizontalFlip(p=self.flip_probability), ShortSide(self.short_side_px, self.long_side_px, self.resize)],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["rows"]),
            keypoint_params=A.KeypointParams(format="xy", remove_invisible=False),
        )


def _regroup(vertices: np.ndarray, before: Sequence[tuple[np.ndarray, ...]], rows: np.ndarray) -> PolygonMasks:
    """All vertices in one array -> the polygons they came from, for the objects that are left."""
    cuts = np.cumsum([len(polygon) for polygons in before for polygon in polygons])
    moved = iter(np.split(vertices, cuts[:-1]))
    objects = [tuple(next(moved) for _ in polygons) for polygons in before]
    return PolygonMasks(tuple(objects[row] for row in rows))
