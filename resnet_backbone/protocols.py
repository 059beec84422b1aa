"""What a detector or segmenter expects of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from .preprocess import Preprocess


@dataclass(frozen=True)
class FeatureSpec:
    """The shape of one feature level.

    Attributes:
        channels: number of channels.
        stride: pixels of the input image per cell of the feature map.
    """

    channels: int
    stride: int


@runtime_checkable
class PublishesLevels(Protocol):
    """A module that publishes the feature levels that it returns: a backbone or a neck.

    Attributes:
        feature_specs: level name -> its channels and stride, in the order in which `forward` returns the levels.
    """

    feature_specs: dict[str, FeatureSpec]


@runtime_checkable
class Backbone(PublishesLevels, Protocol):
    """A module that maps an image to feature levels.

    `ResNetBackbone` is one; `as_backbone` makes one of timm's and torchvision's models.

    Attributes:
        feature_specs: level name -> its channels and stride.
        preprocess: how images must be normalised for the backbone's weights.
    """

    preprocess: Preprocess

    def forward(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """Compute the feature levels.

        Args:
            pixels: (N, 3, H, W), normalised.

        Returns:
            Level name -> (N, channels, ceil(H / stride), ceil(W / stride)).
        """
        ...
