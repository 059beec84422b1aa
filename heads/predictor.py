"""Predictor: from images to detections in the pixels of these images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from resnet_backbone.errors import InvalidType, InvalidValue
from resnet_backbone.preprocess import Preprocess

from . import boxes as B
from .detector import RCNN
from .images import read_image, resize, resized_size, upright_rgb
from .masks import PolygonMasks
from .roi_masks import RoiMasks
from .structures import Detections, ImageBatch, ImageSize
from .transfer import send

if TYPE_CHECKING:
    from PIL import Image

    ImageLike = np.ndarray | Image.Image | str | PathLike[str]


class Prepared(NamedTuple):
    """A resized image.

    Attributes:
        pixels: (3, h, w) RGB, uint8, or floats from 0 to 255 if `Preprocess.resize` is "torch".
        size: size of the image before resizing.
    """

    pixels: torch.Tensor
    size: ImageSize


class Predictor:
    """Detects objects in images; `Predictor(detector)(images)`.

    Images are resized and normalised as the detector's `preprocess` prescribes.

    Args:
        detector: the detector; it is set to inference mode. Its weights may be in half or double precision
            (`detector.half()`, `.bfloat16()`, `.double()`); boxes are computed in float32 at least.
        precision: "fp32" for the precision of the weights, "bf16" or "fp16" for autocast.
        batch_size: images per batch.
        fast: use a copy of the detector that `RCNN.for_inference` makes, with weights in half precision where
            `precision` says so. Later changes of the detector do not reach it.
        compile: compile that copy too; it takes about a minute. It implies `fast`.

    Raises:
        InvalidValue: an unknown precision.
        CannotCompile: there is no C++ compiler, for example.
    """

    def __init__(
        self,
        detector: RCNN,
        *,
        precision: str = "fp32",
        batch_size: int = 1,
        fast: bool = False,
        compile: bool = False,
    ) -> None:
        dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
        if precision not in dtypes:
            raise InvalidValue(f"precision={precision!r} is unknown: give one of {', '.join(dtypes)}")
        self.dtype, self.batch_size = dtypes[precision], batch_size
        self.detector = detector.eval()
        if fast or compile:
            self.detector, self.dtype = detector.for_inference(dtype=self.dtype, compile=compile), None

    def __call__(self, images: Iterable[ImageLike]) -> list[Detections]:
        """Detect objects.

        Args:
            images: uint8 arrays, RGB (H, W, 3) or grey (H, W) or (H, W, 1), of any strides; Pillow images; or paths.
                The EXIF orientation of paths and Pillow images is applied first. A generator is read batch by batch.

        Returns:
            One `Detections` per image, on the CPU, best first. Boxes are in pixels of the image, masks are `BitMasks`
            of its size.

        Raises:
            UnreadableImage: a file that is missing, truncated or no image.
            InvalidType: anything that is no image, or a single image instead of a list.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            raise InvalidType("Predictor takes a list of images, this is one array of them: give list(images)")
        # a Pillow image has convert()
        if isinstance(images, (str, PathLike, np.ndarray)) or hasattr(images, "convert"):
            raise InvalidType("Predictor takes a list of images: put this one in brackets")
        if not isinstance(images, Iterable):
            raise InvalidType(f"Predictor takes a list of images, not {type(images).__name__}: give a list")
        detections: list[Detections] = []
        remaining, prepare_one = iter(images), self.preparation()
        while batch := [prepare_one(as_array(image)) for image in islice(remaining, self.batch_size)]:
            detections += self.detect(batch)
        return detections

    def preparation(self) -> Callable[[np.ndarray], Prepared]:
        """The function that prepares images for `detect`. It can be pickled, to prepare them in other processes."""
        precise = next(self.detector.parameters()).dtype == torch.float64
        return partial(prepare, preprocess=self.detector.preprocess, precise=precise)

    def detect(self, prepared: Sequence[Prepared]) -> list[Detections]:
        """Detect objects in one batch of prepared images.

        Args:
            prepared: N images, as the function that `preparation` returns makes them.

        Returns:
            N `Detections`, as `__call__` returns them.
        """
        parameter = next(self.detector.parameters())
        device, dtype = parameter.device, parameter.dtype
        batch = ImageBatch.from_images([send(image.pixels, device) for image in prepared], self.detector.preprocess)
        batch = replace(batch, pixels=batch.pixels.to(dtype))
        autocast: AbstractContextManager[object] = nullcontext()
        low = self.dtype
        # a detector in half precision needs autocast too, unless it pools its regions in this precision
        if low is None and dtype in B.HALF and not self.detector.is_copy_for_inference:
            low = dtype
        if low is not None:
            autocast = torch.autocast(device.type, dtype=low)
        with torch.inference_mode(), autocast:
            detections_of_batch = self.detector.detect(batch)
        return [
            to_image(detections, network, image.size)
            for detections, network, image in zip(detections_of_batch, batch.sizes, prepared)
        ]


def prepare(image: np.ndarray, preprocess: Preprocess, *, precise: bool = False) -> Prepared:
    """Resize an image as the weights of a detector expect it.

    Args:
        image: (H, W, 3) uint8 RGB.
        preprocess: of the detector.
        precise: resize in float64, for detectors in double precision.

    Returns:
        The image for `Predictor.detect`.
    """
    size = ImageSize(height=image.shape[0], width=image.shape[1])
    limits = {"short_side_px": preprocess.short_side_px, "long_side_px": preprocess.long_side_px}
    new_size = resized_size(size, **limits, how=preprocess.resize)
    pixels = torch.tensor(resize(image, new_size, how=preprocess.resize, precise=precise))
    return Prepared(pixels.permute(2, 0, 1), size)


def to_image(detections: Detections, network: ImageSize, image: ImageSize) -> Detections:
    """Convert detections from the pixels of the resized image to those of the image.

    Args:
        detections: boxes in pixels of the resized image.
        network: size of the resized image.
        image: size of the image.

    Returns:
        The detections on the CPU, clipped to the image, with masks as `BitMasks` of its size. Empty boxes are dropped.
    """
    detections = detections.to("cpu")
    scale = detections.boxes.new_tensor([image.width / network.width, image.height / network.height] * 2)
    boxes = B.clip(detections.boxes * scale, image)
    kept = replace(detections, boxes=boxes)[B.larger_than(boxes, 0)]
    if isinstance(kept.masks, RoiMasks):
        return replace(kept, masks=kept.masks.paste(kept.boxes, image.height, image.width))
    if isinstance(kept.masks, PolygonMasks):
        polygons = kept.masks.scaled(image.width / network.width, image.height / network.height)
        return replace(kept, masks=polygons.rasterise(image.height, image.width))
    return kept


def as_array(image: ImageLike) -> np.ndarray:
    """Convert an image to an array.

    Args:
        image: a uint8 array, RGB (H, W, 3) or grey (H, W) or (H, W, 1), of any strides; a Pillow image; or a path.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        UnreadableImage: a file that is missing, truncated or no image.
        InvalidType: anything else.
    """
    if isinstance(image, np.ndarray):
        return _rgb_array(image)
    if isinstance(image, (str, PathLike)):
        return read_image(image)
    if hasattr(image, "convert"):
        return upright_rgb(image)
    fix = ": give image.permute(1, 2, 0).cpu().numpy()" if hasattr(image, "permute") else ""
    raise InvalidType(f"an image is an array, a Pillow image or a path, not {type(image).__name__}{fix}")


def _rgb_array(image: np.ndarray) -> np.ndarray:
    """A contiguous RGB array; InvalidType for other arrays, with what makes one of them."""
    shape = image.shape
    if image.dtype == np.uint8 and 0 not in shape:
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim == 3 and image.shape[2] == 1:
            return np.repeat(image, 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return np.ascontiguousarray(image)
    if 0 in shape:
        fix = "it has no pixels, leave it out"
    elif image.dtype == np.bool_:
        fix = "give 255 * image.astype(np.uint8)"
    elif image.dtype != np.uint8:
        fix = (
            "give image.astype(np.uint8) if the values are 0 to 255, (255 * image).round().astype(np.uint8) if they "
            "are 0 to 1, or heads.images.scaled_to_8_bits(image) for any others"
        )
    elif image.ndim == 3 and shape[0] in (1, 3, 4):
        fix = "give image.transpose(1, 2, 0) if the channels are first"
        fix += ", image[..., :3] if there is an alpha channel" if shape[2] == 4 else ""
    elif image.ndim == 3 and shape[2] == 4:
        fix = "give image[..., :3], without the alpha channel"
    elif image.ndim == 3 and shape[2] == 2:
        fix = "give image[..., 0], without the alpha channel"
    else:
        fix = "give one image with three channels at the end"
    raise InvalidType(
        f"an image array is (H, W, 3) uint8 RGB, or (H, W) uint8 for grey, this one is {shape} {image.dtype}: {fix}"
    )
