"""Predictor: images in, detections in the images' own pixels out."""

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
    """`Predictor(detector)(images)`: uint8 RGB arrays (H, W, 3), Pillow images or paths -> one `Detections` an image.

    Boxes are in pixels of the image as given (paths and Pillow images are turned upright by their EXIF orientation
    first), masks are `BitMasks` of its size. The image is resized and normalised as the detector's `preprocess`
    says. precision: "fp32", or "bf16" and "fp16" for autocast. Images go through in batches of `batch_size`.
    """

    def __init__(self, detector: RCNN, *, precision: str = "fp32", batch_size: int = 1) -> None:
        dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
        if precision not in dtypes:
            raise InvalidValue(f"precision={precision!r} is unknown: give one of {', '.join(dtypes)}")
        self.detector = detector.eval()
        self.dtype, self.batch_size = dtypes[precision], batch_size

    def __call__(self, images: Sequence[ImageLike]) -> list[Detections]:
        """Raises `UnreadableImage` for a path without an image, TypeError for anything that is no image."""
        if isinstance(images, (str, PathLike, np.ndarray)) or hasattr(images, "convert"):  # convert: a Pillow image
            raise InvalidType("Predictor takes a list of images: put this one in brackets")
        detections = []
        for start in range(0, len(images), self.batch_size):
            arrays = [as_array(image) for image in images[start : start + self.batch_size]]
            detections += self._predict(arrays)
        return detections

    def _predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        rule = self.detector.preprocess
        parameter = next(self.detector.parameters())
        device, precise = parameter.device, parameter.dtype == torch.float64
        small = []
        for image in images:
            size = ImageSize(height=image.shape[0], width=image.shape[1])
            limits = {"short_side_px": rule.short_side_px, "long_side_px": rule.long_side_px}
            target = resized_size(size, **limits, how=rule.resize)
            pixels = torch.tensor(resize(image, target, how=rule.resize, precise=precise))
            small.append(pixels.permute(2, 0, 1).to(device))
        batch = ImageBatch.from_images(small, rule)
        if precise:
            batch = replace(batch, pixels=batch.pixels.double())
        autocast: AbstractContextManager[object] = nullcontext()
        if self.dtype is not None:
            autocast = torch.autocast(device.type, dtype=self.dtype)
        with torch.inference_mode(), autocast:
            found = self.detector.detect(batch)
        return [
            to_image(detections, network, ImageSize(height=image.shape[0], width=image.shape[1]))
            for detections, network, image in zip(found, batch.sizes, images)
        ]


def to_image(detections: Detections, network: ImageSize, image: ImageSize) -> Detections:
    """Detections at network scale -> in the image's own pixels, on the CPU, masks pasted; empty boxes are dropped."""
    scale = detections.boxes.new_tensor([image.width / network.width, image.height / network.height] * 2)
    boxes = B.clip(detections.boxes * scale, image)
    found = replace(detections, boxes=boxes)[B.larger_than(boxes, 0)].to("cpu")
    if isinstance(found.masks, RoiMasks):
        found = replace(found, masks=found.masks.paste(found.boxes, image.height, image.width))
    elif isinstance(found.masks, PolygonMasks):
        outlines = found.masks.scaled(image.width / network.width, image.height / network.height)
        found = replace(found, masks=outlines.rasterise(image.height, image.width))
    return found


def as_array(image: ImageLike) -> np.ndarray:
    """Any image that `Predictor` takes -> (H, W, 3) uint8 RGB."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InvalidType(f"arrays are (H, W, 3) uint8 RGB, this one is {image.shape} {image.dtype}")
        return image
    if isinstance(image, (str, PathLike)):
        return read_image(image)
    if hasattr(image, "convert"):
        return upright_rgb(image)
    raise InvalidType(f"an image is an array, a Pillow image or a path, not {type(image).__name__}")
