"""Preprocess: the pixel format that weights expect, with the two tensor operations that produce it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .errors import InvalidType, InvalidValue


@dataclass(frozen=True)
class Preprocess:
    """How an RGB uint8 image is resized, normalised and padded for a net; the record travels with its weights.

    The defaults are torchvision's ImageNet normalisation and detectron2's image size.

    Attributes:
        channel_order: order of the channels that the net reads, "rgb" or "bgr".
        value_range: the value that 255 of a uint8 image becomes before mean and std are applied, 1 or 255.
        mean: subtracted from every channel, in the order `channel_order` and the range `value_range`.
        std: every channel is divided by it after the mean is subtracted; order and range as for `mean`.
        short_side_px: pixels of the image's short side after resizing, unless its long side would exceed
            `long_side_px`.
        long_side_px: most pixels of the image's long side after resizing.
        pad_to_multiple_px: batches are padded with zeros, after normalising, so that height and width are multiples of
            this number of pixels.
        resize: the bilinear filter: "pillow" averages over the source pixels when it shrinks (detectron2), "opencv"
            interpolates between four pixels (mmdetection); both round to uint8. "torch" interpolates between four
            pixels and does not round (torchvision, which normalises before resizing: for a linear filter the result is
            the same).

    Raises:
        InvalidValue: a value that no code supports.
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
            raise InvalidValue(f"std={self.std} must be positive in every channel")
        if not 0 < self.short_side_px <= self.long_side_px:
            raise InvalidValue(
                f"short_side_px={self.short_side_px} must be positive and at most long_side_px={self.long_side_px}"
            )

    def with_colours_of(self, other: Preprocess) -> Preprocess:
        """Take over another record's pixel values and keep the sizes and the filter of this one.

        Args:
            other: gives channel order, value range, mean and std.

        Returns:
            The combined record.
        """
        colours = {name: getattr(other, name) for name in ("channel_order", "value_range", "mean", "std")}
        return replace(self, **colours)

    def normalise(self, image: Tensor) -> Tensor:
        """Bring an image to the channel order, value range, mean and std of the weights.

        Args:
            image: (3, H, W) or (N, 3, H, W) uint8, RGB. If `resize` is "torch", floats from 0 to 255 are allowed too.

        Returns:
            A tensor of the same shape; float32, or the precision of a float image.

        Raises:
            InvalidType: another dtype, such as a float image that may have been normalised before.
            InvalidValue: another shape.
        """
        if image.dtype != torch.uint8 and not (self.resize == "torch" and image.is_floating_point()):
            raise InvalidType(f"images are uint8 RGB, 0 to 255; this one is {image.dtype}: pass it as it was read")
        if image.ndim < 3 or image.shape[-3] != 3:
            raise InvalidValue(f"images are (3, H, W) or (N, 3, H, W), this one is {tuple(image.shape)}")
        pixels = image if image.is_floating_point() else image.to(torch.float32)
        if self.channel_order == "bgr":
            pixels = pixels.flip(-3)
        if self.value_range == 1:
            pixels = pixels / 255.0
        return (pixels - _by_channel(self.mean, pixels)) / _by_channel(self.std, pixels)

    def pad(self, images: Sequence[Tensor]) -> Tensor:
        """Collect images of different sizes into one batch.

        Args:
            images: N of (3, H_i, W_i), normalised.

        Returns:
            (N, 3, H, W) with zeros on the right and at the bottom; H and W are multiples of `pad_to_multiple_px`.
        """
        multiple = self.pad_to_multiple_px
        height = -(-max(image.shape[1] for image in images) // multiple) * multiple
        width = -(-max(image.shape[2] for image in images) // multiple) * multiple
        batch = images[0].new_zeros(len(images), 3, height, width)
        for row, image in zip(batch, images):
            row[:, : image.shape[1], : image.shape[2]] = image
        return batch


def _by_channel(values: tuple[float, float, float], like: Tensor) -> Tensor:
    """(3, 1, 1): numbers of the host as a tensor; for a copy of them a GPU would be waited for."""
    return torch.stack([like.new_full((1, 1), value) for value in values])
