"""The containers of the detector: typed, checked when they are built, indexable, movable, registered as pytrees.

N images, R boxes of one image, K classes (labels 0..K - 1). Boxes are (R, 4) x1 y1 x2 y2 in pixels of their image;
pixel i covers the interval [i, i + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from resnet_backbone.errors import InvalidValue
from resnet_backbone.preprocess import Preprocess

from .masks import BitMasks, PolygonMasks
from .roi_masks import RoiMasks

T = TypeVar("T", bound="_Container")


@dataclass(frozen=True)
class ImageSize:
    """Size of an image, given by name: `ImageSize(height=480, width=640)`.

    Attributes:
        height: pixels.
        width: pixels.
    """

    height: int
    width: int


class _Container:
    """Base of the dataclasses below: every field is a tensor, a mask container or None, all of the same length."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    boxes: Tensor

    def _parts(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _map(self: T, function: Callable[[Any], Any]) -> T:
        parts = {k: None if v is None else function(v) for k, v in self._parts().items()}
        return replace(self, **parts)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self: T, index: Tensor | slice) -> T:
        """A subset: a slice, a mask (R,) of bool, or indices (S,) of int64."""
        return self._map(lambda part: part[index])

    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        """Move every field to a device; arguments as for `torch.Tensor.to`."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self: T) -> T:
        """Every field in page-locked memory, from which copies to a GPU need not be waited for."""
        return self._map(lambda part: part.pin_memory())

    def _check(self) -> None:
        name, parts = type(self).__name__, self._parts()
        boxes = parts["boxes"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype not in (torch.float32, torch.float64):
            raise InvalidValue(
                f"{name}.boxes must be (R, 4) float32 or float64, xyxy in pixels; "
                f"got {tuple(boxes.shape)} {boxes.dtype}"
            )
        for key, part in parts.items():
            if part is not None and len(part) != len(boxes):
                raise InvalidValue(f"{name} has {len(boxes)} boxes but {len(part)} {key}: give one entry per box")
        labels = parts.get("labels")
        if labels is not None and labels.dtype != torch.int64:
            raise InvalidValue(f"{name}.labels must be int64 class indices 0..K-1, got {labels.dtype}")


@dataclass(frozen=True)
class Targets(_Container):
    """Ground truth of one image.

    Attributes:
        boxes: (R, 4) xyxy, pixels, float32 or float64.
        labels: (R,) int64, 0..K - 1.
        masks: R masks, or None for detectors of boxes only.

    Raises:
        InvalidValue: another shape or dtype, or fields of different lengths.
    """

    boxes: Tensor
    labels: Tensor
    masks: PolygonMasks | BitMasks | None = None

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class Proposals(_Container):
    """Proposed regions of one image.

    Attributes:
        boxes: (R, 4) xyxy, pixels, float32 or float64.
        scores: (R,) logits.

    Raises:
        InvalidValue: another shape or dtype, or fields of different lengths.
    """

    boxes: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class Detections(_Container):
    """Detected objects of one image, best first.

    Attributes:
        boxes: (R, 4) xyxy, pixels, float32 or float64.
        scores: (R,) 0..1.
        labels: (R,) int64, 0..K - 1.
        masks: R masks, or None: `RoiMasks` in the frames of the boxes (from the mask head), `BitMasks` in the pixels of
            the image (from `Predictor`), or `PolygonMasks`.

    Raises:
        InvalidValue: another shape or dtype, or fields of different lengths.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: RoiMasks | PolygonMasks | BitMasks | None = None

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def empty(cls) -> Detections:
        """No detections, on the CPU and without masks."""
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class ImageBatch:
    """Normalised and padded images.

    Attributes:
        pixels: (N, 3, H, W); every image lies at the top left.
        sizes: N sizes without padding.

    Raises:
        InvalidValue: another number of dimensions, or of sizes.
    """

    pixels: Tensor
    sizes: tuple[ImageSize, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or len(self.pixels) != len(self.sizes):
            raise InvalidValue(
                "ImageBatch takes pixels (N, 3, H, W) and N sizes; "
                f"got {tuple(self.pixels.shape)}, {len(self.sizes)} sizes"
            )

    @classmethod
    def from_images(cls, images: Sequence[Tensor], preprocess: Preprocess) -> ImageBatch:
        """Normalise and pad images.

        Args:
            images: N of (3, H_i, W_i) uint8 RGB, resized.
            preprocess: the pixel format that the weights expect.

        Returns:
            The batch, in channels_last memory.
        """
        pixels = preprocess.pad([preprocess.normalise(image) for image in images])
        return cls(
            pixels.contiguous(memory_format=torch.channels_last),
            tuple(ImageSize(height=image.shape[1], width=image.shape[2]) for image in images),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Move the pixels to a device; arguments as for `torch.Tensor.to`."""
        return ImageBatch(self.pixels.to(device, non_blocking=non_blocking), self.sizes)

    def pin_memory(self) -> ImageBatch:
        """The pixels in page-locked memory, from which copies to a GPU need not be waited for."""
        return ImageBatch(self.pixels.pin_memory(), self.sizes)


def _register(cls: type) -> None:
    names = [f.name for f in fields(cls)]

    def flatten(value: Any) -> tuple[list[Any], None]:
        return [getattr(value, name) for name in names], None

    def unflatten(children: Any, _: None) -> Any:
        # without __init__, because pytrees also hold placeholders, which the checks would refuse
        value: Any = object.__new__(cls)
        for name, child in zip(names, children):
            object.__setattr__(value, name, child)
        return value

    register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"heads.structures.{cls.__name__}")


for _cls in (ImageSize, Targets, Proposals, Detections, ImageBatch):
    _register(_cls)
