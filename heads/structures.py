"""The detector's containers: typed, checked where they are made, indexable, movable, known to pytrees.

Glossary: N images, R boxes of one image, K classes (labels 0..K-1). Boxes are (R, 4) x1 y1 x2 y2 in pixels of the
image they lie in; pixel i covers the interval [i, i + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from resnet_backbone.errors import InvalidValue
from resnet_backbone.preprocess import Preprocess

from .masks import BitMasks, PolygonMasks, RoiMasks

T = TypeVar("T", bound="_Container")


@dataclass(frozen=True)
class ImageSize:
    """Pixels; height first by name, never by position in a bare pair."""

    height: int
    width: int


class _Container:
    """What the dataclasses below share: every field is a tensor, a mask container or None, all of the same length."""

    def _parts(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    def _map(self: T, function: Callable[[Any], Any]) -> T:
        parts = {k: None if v is None else function(v) for k, v in self._parts().items()}
        return replace(self, **parts)  # type: ignore[type-var]

    def __len__(self) -> int:
        return len(self.boxes)  # type: ignore[attr-defined]

    def __getitem__(self: T, index: Tensor | slice) -> T:
        """A subset: a slice, a mask (R,) of bool, or indices (M,) of int64."""
        return self._map(lambda part: part[index])

    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

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
                raise InvalidValue(f"{name} has {len(boxes)} boxes but {len(part)} {key}: one {key} entry a box")
        labels = parts.get("labels")
        if labels is not None and labels.dtype != torch.int64:
            raise InvalidValue(f"{name}.labels must be int64 class indices 0..K-1, got {labels.dtype}")


@dataclass(frozen=True)
class Targets(_Container):
    """Ground truth of one image: boxes (R, 4), labels (R,) int64, masks or None. Raises ValueError for wrong shapes."""

    boxes: Tensor
    labels: Tensor
    masks: PolygonMasks | BitMasks | None = None

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class Proposals(_Container):
    """Regions of one image: boxes (R, 4), scores (R,) logits."""

    boxes: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class Detections(_Container):
    """What was found in one image: boxes (R, 4), scores (R,) 0..1, labels (R,), best first.

    masks: `RoiMasks` (R, M, M) in each box's own frame as the mask head gives them, `PolygonMasks`, `BitMasks`
    (R, H, W) in the image's pixels as `Predictor` gives them, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: RoiMasks | PolygonMasks | BitMasks | None = None

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def empty(cls) -> Detections:
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class ImageBatch:
    """Normalised, padded images (N, 3, H, W), and the N sizes without the padding."""

    pixels: Tensor
    sizes: tuple[ImageSize, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or len(self.pixels) != len(self.sizes):
            raise InvalidValue(
                "ImageBatch wants pixels (N, 3, H, W) and N sizes; "
                f"got {tuple(self.pixels.shape)}, {len(self.sizes)} sizes"
            )

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of `pixels`, with the padding."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @classmethod
    def from_images(cls, images: Sequence[Tensor], preprocess: Preprocess) -> ImageBatch:
        """images: N of (3, H_i, W_i) uint8 RGB, already resized -> normalised and padded as the weights want them."""
        pixels = preprocess.pad([preprocess.normalise(image) for image in images])
        return cls(
            pixels.contiguous(memory_format=torch.channels_last),
            tuple(ImageSize(height=image.shape[1], width=image.shape[2]) for image in images),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        return ImageBatch(self.pixels.to(device, non_blocking=non_blocking), self.sizes)


def _register(cls: type) -> None:
    names = [f.name for f in fields(cls)]

    def flatten(value: Any) -> tuple[list[Any], None]:
        return [getattr(value, name) for name in names], None

    def unflatten(children: Any, _: None) -> Any:
        # without __init__: pytrees also carry placeholders, which no check would pass
        value: Any = object.__new__(cls)
        for name, child in zip(names, children):
            object.__setattr__(value, name, child)
        return value

    register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"heads.structures.{cls.__name__}")


for _cls in (ImageSize, Targets, Proposals, Detections, ImageBatch):
    _register(_cls)
