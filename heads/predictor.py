"""Predictor: from images to detections in the pixels of these images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch

from resnet_backbone.errors import InvalidType, InvalidValue

from . import boxes as B
from .detector import RCNN
from .images import read_image, resize, resized_size, upright_rgb
from .masks import PolygonMasks, RoiMasks
from .structures import Detections, ImageBatch, ImageSize

if TYPE_CHECKING:
    from PIL import Image

    ImageLike = np.ndarray | Image.Image | str | PathLike[str]


class Predictor:
    """Detects objects in images; `Predictor(detector)(images)`.

    Images are resized and normalised as the detector's `preprocess` prescribes.

    Args:
        detector: the detector; it is set to inference mode.
        precision: "fp32" for the precision of the weights, "bf16" or "fp16" for autocast.
        batch_size: images per batch.

    Raises:
        InvalidValue: an unknown precision.
    """

    def __init__(self, detector: RCNN, *, precision: str = "fp32", batch_size: int = 1) -> None:
        dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
        if precision not in dtypes:
            raise InvalidValue(f"precision={precision!r} is unknown: give one of {', '.join(dtypes)}")
        self.detector = detector.eval()
        self.dtype, self.batch_size = dtypes[precision], batch_size

    def __call__(self, images: Sequence[ImageLike]) -> list[Detections]:
        """Detect objects.

        Args:
            images: uint8 RGB arrays (H, W, 3), Pillow images or paths. The EXIF orientation of paths and Pillow images
                is applied first.

        Returns:
            One `Detections` per image, on the CPU, best first. Boxes are in pixels of the image, masks are `BitMasks`
            of its size.

        Raises:
            UnreadableImage: a file that is missing, truncated or no image.
            InvalidType: anything that is no image, or a single image instead of a list.
        """
        if isinstance(images, (str, PathLike, np.ndarray)) or hasattr(
            images, "convert"
        ):  # a Pillow image has convert()
            raise InvalidType("Predictor takes a list of images: put this one in brackets")
        detections = []
        for start in range(0, len(images), self.batch_size):
            arrays = [as_array(image) for image in images[start : start + self.batch_size]]
            detections += self._predict(arrays)
        return detections

    def _predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detect objects in one batch of (H, W, 3) arrays."""
        preprocess = self.detector.preprocess
        parameter = next(self.detector.parameters())
        device, precise = parameter.device, parameter.dtype == torch.float64
        resized = []
        for image in images:
            size = ImageSize(height=image.shape[0], width=image.shape[1])
            limits = {"short_side_px": preprocess.short_side_px, "long_side_px": preprocess.long_side_px}
            new_size = resized_size(size, **limits, how=preprocess.resize)
            pixels = torch.tensor(resize(image, new_size, how=preprocess.resize, precise=precise))
            resized.append(pixels.permute(2, 0, 1).to(device))
        batch = ImageBatch.from_images(resized, preprocess)
        if precise:
            batch = replace(batch, pixels=batch.pixels.double())
        autocast: AbstractContextManager[object] = nullcontext()
        if self.dtype is not None:
            autocast = torch.autocast(device.type, dtype=self.dtype)
        with torch.inference_mode(), autocast:
            detections_of_batch = self.detector.detect(batch)
        return [
            to_image(detections, network, ImageSize(height=image.shape[0], width=image.shape[1]))
            for detections, network, image in zip(detections_of_batch, batch.sizes, images)
        ]


def to_image(detections: Detections, network: ImageSize, image: ImageSize) -> Detections:
    """Convert detections from the pixels of the resized image to those of the image.

    Args:
        detections: boxes in pixels of the resized image.
        network: size of the resized image.
        image: size of the image.

    Returns:
        The detections on the CPU, clipped to the image, with masks as `BitMasks` of its size. Empty boxes are dropped.
    """
    scale = detections.boxes.new_tensor([image.width / network.width, image.height / network.height] * 2)
    boxes = B.clip(detections.boxes * scale, image)
    kept = replace(detections, boxes=boxes)[B.larger_than(boxes, 0)].to("cpu")
    if isinstance(kept.masks, RoiMasks):
        return replace(kept, masks=kept.masks.paste(kept.boxes, image.height, image.width))
    if isinstance(kept.masks, PolygonMasks):
        polygons = kept.masks.scaled(image.width / network.width, image.height / network.height)
        return replace(kept, masks=polygons.rasterise(image.height, image.width))
    return kept


def as_array(image: ImageLike) -> np.ndarray:
    """Convert an image to an array.

    Args:
        image: a uint8 RGB array (H, W, 3), a Pillow image or a path.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImage: a file that is missing, truncated or no image.
        InvalidType: anything else.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InvalidType(
                f"an image array is (H, W, 3) uint8 RGB, this one is {image.shape} {image.dtype}: convert it"
            )
        return image
    if isinstance(image, (str, PathLike)):
        return read_image(image)
    if hasattr(image, "convert"):
        return upright_rgb(image)
    raise InvalidType(f"an image is an array, a Pillow image or a path, not {type(image).__name__}")
