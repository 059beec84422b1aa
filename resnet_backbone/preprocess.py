"""What a network's weights were trained on: a record that travels with them, and its two tensor operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .errors import InvalidType, InvalidValue


@dataclass(frozen=True)
class Preprocess:
    """How an RGB uint8 image becomes the pixels that the weights know.

    `channel_order`: the order the net wants; `value_range` 1 or 255: what uint8's 255 becomes before mean and std
    (both in that order and range). The image's short side is brought to `short_side_px`, unless its long side would
    exceed `long_side_px`; batches are padded with zeros, after normalising, to a multiple of `pad_to_multiple_px`.
    `resize`: "pillow" averages when it shrinks (detectron2), "opencv" reads four pixels (mmdetection), both give whole
    values; "torch" reads four pixels and keeps fractions (torchvision, which normalises first: that is the same for a
    linear filter). The default is torchvision's ImageNet training with detectron2's resize rule.
    """

    channel_order: Literal["rgb", "bgr"] = "rgb"
    value_range: Literal[1, 255] = 1
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    short_side_px: int = 800
    long_side_px: int = 1333
    pad_to_multiple_px: int = 32
    resize: Literal["pillow", "opencv", "torch"] = "pillow"

    def __post_init__(self) -> None:
        if self.channel_order not in ("rgb", "bgr") or self.value_range not in (1, 255):
            raise InvalidValue(
                f"channel_order={self.channel_order!r}, value_range={self.value_range!r}: give 'rgb' or 'bgr', 1 or 255"
            )
        if self.resize not in ("pillow", "opencv", "torch"):
            raise InvalidValue(f"resize={self.resize!r} is unknown: give 'pillow', 'opencv' or 'torch'")
        if min(self.std) <= 0:
            raise InvalidValue(f"std={self.std} must be positive")
        if not 0 < self.short_side_px <= self.long_side_px:
            raise InvalidValue(
                f"short_side_px={self.short_side_px} must be positive and at most long_side_px={self.long_side_px}"
            )

    def with_colours_of(self, other: Preprocess) -> Preprocess:
        """This one's sizes and resize with the other's channel order, range, mean and std."""
        colours = {name: getattr(other, name) for name in ("channel_order", "value_range", "mean", "std")}
        return replace(self, **colours)

    def normalise(self, image: Tensor) -> Tensor:
        """image: (3, H, W) or (N, 3, H, W) uint8, RGB -> as many of float32, in the net's channel order. Where
        `resize` is "torch", also floats from 0 to 255, whose precision stays. Raises TypeError or ValueError for
        anything else: floats that were normalised twice are a classic."""
        if image.dtype != torch.uint8 and not (self.resize == "torch" and image.is_floating_point()):
            raise InvalidType(f"images are uint8 RGB, 0 to 255; this one is {image.dtype}: pass it as it was read")
        if image.ndim < 3 or image.shape[-3] != 3:
            raise InvalidValue(f"images are (3, H, W) or (N, 3, H, W), this one is {tuple(image.shape)}")
        pixels = image if image.is_floating_point() else image.to(torch.float32)
        if self.channel_order == "bgr":
            pixels = pixels.flip(-3)
        if self.value_range == 1:
            pixels = pixels / 255.0
        mean = torch.tensor(self.mean, device=image.device, dtype=pixels.dtype).reshape(3, 1, 1)
        std = torch.tensor(self.std, device=image.device, dtype=pixels.dtype).reshape(3, 1, 1)
        return (pixels - mean) / std

    def pad(self, images: Sequence[Tensor]) -> Tensor:
        """images: N of (3, H_i, W_i) -> (N, 3, H, W), zeros on the right and below."""
        multiple = self.pad_to_multiple_px
        height = -(-max(image.shape[1] for image in images) // multiple) * multiple
        width = -(-max(image.shape[2] for image in images) // multiple) * multiple
        batch = images[0].new_zeros(len(images), 3, height, width)
        for row, image in zip(batch, images):
            row[:, : image.shape[1], : image.shape[2]] = image
        return batch
