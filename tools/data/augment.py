"""Augmentation of an image with its boxes and masks: horizontal flip and multi-scale resize, as by albumentations.

Valid boxes take a short way: the same arithmetic as albumentations, in the same order and precision, without its
conversions and checks, which take as long as decoding the image. Boxes and masks that albumentations would refuse or
drop, or whose size is in doubt, go through albumentations.

Coordinates: albumentations flips keypoints as pixel centres (x -> W - 1 - x) but boxes as edges (x -> W - x). Polygon
vertices are edges too. They are shifted by -0.5 px before the transforms and by +0.5 px after them; without the shift,
a flip would move each mask by one pixel relative to its box.
"""

from __future__ import annotations

import os
import random
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
        return _resize_mask(mask, size)

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


Sample = tuple[torch.Tensor, Targets]


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

    def __call__(self, image: np.ndarray, record: ImageRecord, seed: int) -> Sample:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            record: the image's annotations; R objects.
            seed: seed of the flip and of the size.

        Returns:
            The image, (3, h, w) uint8 (float32 if `resize` is "torch"), and its targets with R boxes.
        """
        moved = self._direct(image, record, seed)
        return self._by_albumentations(image, record, seed) if moved is None else moved

    def _direct(self, image: np.ndarray, record: ImageRecord, seed: int) -> Sample | None:
        """Augment without albumentations; None if it might refuse or drop an object."""
        height, width = image.shape[:2]
        if image.dtype != np.uint8 or image.shape != (record.size.height, record.size.width, 3):
            return None
        # the draws of A.HorizontalFlip.should_apply and of ShortSide
        flip = self.flip_probability >= 1 or random.Random(seed).random() < self.flip_probability
        short_side_px = int(np.random.default_rng(seed).choice(self.short_side_px))
        size = resized_size(record.size, short_side_px=short_side_px, long_side_px=self.long_side_px, how=self.resize)
        boxes = _move_boxes(record.boxes, record.size, size, flip=flip)
        if boxes is None:
            return None
        masks: PolygonMasks | BitMasks | None = None
        if self.masks and _has_polygons(record):
            masks = _move_polygons(record.segmentations, record.size, size, flip=flip)
        elif self.masks:
            planes = _decode(record)
            if any(plane.shape != (height, width) for plane in planes):
                return None
            planes = [_resize_mask(cv2.flip(plane, 1) if flip else plane, size) for plane in planes]
            masks = BitMasks(torch.from_numpy(np.stack(planes).view(bool)))
        targets = Targets(torch.from_numpy(boxes), torch.from_numpy(record.labels.astype(np.int64)), masks)
        return _planes(resize(cv2.flip(image, 1) if flip else image, size, how=self.resize)), targets

    def _by_albumentations(self, image: np.ndarray, record: ImageRecord, seed: int) -> Sample:
        has_polygons = _has_polygons(record)
        objects = record.segmentations if self.masks and has_polygons else ()
        vertices = [polygon for polygons in objects for polygon in polygons]
        inputs: dict[str, Any] = {
            "image": image,
            "bboxes": record.boxes,
            "rows": np.arange(len(record.boxes)),
            "keypoints": np.concatenate(vertices) - 0.5 if vertices else np.zeros((0, 2)),
        }
        if self.masks and not has_polygons:
            inputs["masks"] = _decode(record)
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
        return _planes(outputs["image"]), Targets(boxes, torch.from_numpy(record.labels[rows]), masks)

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


def _has_polygons(record: ImageRecord) -> bool:
    return all(isinstance(segmentation, tuple) for segmentation in record.segmentations)


def _decode(record: ImageRecord) -> list[np.ndarray]:
    """Bitmaps of the objects, (H, W) uint8 of 0 and 1."""
    height, width = record.size.height, record.size.width
    return [decode_segmentation(coco_form(s), height, width).astype(np.uint8) for s in record.segmentations]


def _resize_mask(mask: np.ndarray, size: ImageSize) -> np.ndarray:
    return cv2.resize(mask, (size.width, size.height), interpolation=cv2.INTER_NEAREST_EXACT)


def _planes(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) to (3, H, W)."""
    planes = image.transpose(2, 0, 1)  # `heads.enlarge` has them in memory
    if image.dtype == np.uint8 and not planes.flags.c_contiguous:
        planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
        cv2.split(image, list(planes))  # four times as fast as numpy's copy
    return torch.from_numpy(np.ascontiguousarray(planes))


# boxes with a smaller area in either image, square pixels, are left to albumentations, which drops those below 1e-7
_LEAST_AREA = 1e-3


def _move_boxes(boxes: np.ndarray, old: ImageSize, new: ImageSize, *, flip: bool) -> np.ndarray | None:
    """Flip and scale boxes as albumentations does, which keeps fractions of the image, at first in float32.

    Args:
        boxes: (R, 4) float64 xyxy, pixels of the original image.
        old: size of the original image.
        new: size of the resized image.
        flip: whether the image is flipped.

    Returns:
        (R, 4) float32; None if albumentations might refuse or drop one.
    """
    before = np.array([old.width, old.height, old.width, old.height], dtype=np.float64)
    after = np.array([new.width, new.height, new.width, new.height], dtype=np.float64)
    single = (boxes.astype(np.float32) / before).astype(np.float32)
    surely_kept = _surely_kept(single, old, new)
    if flip:
        single = np.stack([1 - single[:, 2], single[:, 1], 1 - single[:, 0], single[:, 3]], axis=1)
        surely_kept = surely_kept and _surely_kept(single, old, new)
    if not surely_kept:
        return None
    # each of its three checks goes from fractions to pixels and back, which rounds
    fractions = single.astype(np.float64)
    for scale in (before, after, after):
        fractions = np.minimum(fractions * scale, scale) / scale
    moved: np.ndarray = (fractions * after).astype(np.float32)
    return moved


def _surely_kept(fractions: np.ndarray, *sizes: ImageSize) -> bool:
    """Whether albumentations keeps all boxes (R, 4), fractions of images of these sizes."""
    sides = fractions[:, 2:] - fractions[:, :2]
    area = sides.astype(np.float64).prod(axis=1) * min(size.width * size.height for size in sizes)
    return bool((fractions >= 0).all() and (fractions <= 1).all() and (sides > 0).all() and (area > _LEAST_AREA).all())


def _move_polygons(objects: Sequence[Any], old: ImageSize, new: ImageSize, *, flip: bool) -> PolygonMasks:
    """Flip and scale polygons as albumentations and `ShortSide` do with keypoints, in float32."""
    vertices = [polygon for polygons in objects for polygon in polygons]
    points = (np.concatenate(vertices) - 0.5 if vertices else np.zeros((0, 2))).astype(np.float32)
    if flip:
        points[:, 0] = (old.width - 1) - points[:, 0]
    scale = np.array([new.width / old.width, new.height / old.height])
    points = ((points + 0.5) * scale - 0.5).astype(np.float32)
    return _regroup(points.astype(np.float64) + 0.5, objects, np.arange(len(objects)))


def _regroup(vertices: np.ndarray, objects: Sequence[tuple[np.ndarray, ...]], rows: np.ndarray) -> PolygonMasks:
    """Split concatenated vertices (V, 2) into the polygons of `objects`, and keep the objects in `rows`."""
    ends = np.cumsum([len(polygon) for polygons in objects for polygon in polygons])
    polygons = iter(np.split(vertices, ends[:-1]))
    regrouped = [tuple(next(polygons) for _ in original) for original in objects]
    return PolygonMasks(tuple(regrouped[row] for row in rows))
