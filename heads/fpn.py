"""FeaturePyramid: C2..C5 -> P2..P6 (Lin et al., *Feature Pyramid Networks*, CVPR 2017, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue
from resnet_backbone.norm import conv_layer
from resnet_backbone.protocols import FeatureSpec


class FeaturePyramid(nn.Module):
    """A feature pyramid: lateral 1x1 convolutions, a nearest-neighbour top-down path and 3x3 output convolutions.

    The coarsest level, P6, is every second pixel of P5: max pooling of size 1 and stride 2, as detectron2's
    `LastLevelMaxPool`.

    Args:
        specs: the backbone's `feature_specs`.
        levels: the levels to use, fine to coarse.
        channels: channels of every level of the pyramid.
        norm: norm behind every convolution, a name in `NORMS`, or "none" for biases.

    Attributes:
        feature_specs: "p2" ... "p6" -> channels and stride, for the levels that are returned.

    Raises:
        InvalidValue: a level that the backbone does not return, or an unknown norm.
    """

    def __init__(
        self,
        specs: Mapping[str, FeatureSpec],
        *,
        levels: Sequence[str] = ("c2", "c3", "c4", "c5"),
        channels: int = 256,
        norm: str = "none",
    ) -> None:
        super().__init__()
        for level in levels:
            if level not in specs:
                raise InvalidValue(
                    f"{level.replace('c', 'P')} needs {level.upper()}, the backbone gives {list(specs)}: "
                    f'add "{level}" to out_levels'
                )
        self.levels = tuple(levels)
        self.lateral = nn.ModuleDict({level: conv_layer(specs[level].channels, channels, 1, norm) for level in levels})
        self.output = nn.ModuleDict({level: conv_layer(channels, channels, 3, norm) for level in levels})
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        self.feature_specs = {_p(level): FeatureSpec(channels, specs[level].stride) for level in levels}
        coarsest = self.levels[-1]
        self.extra = f"p{int(coarsest[1:]) + 1}"
        self.feature_specs[self.extra] = FeatureSpec(channels, specs[coarsest].stride * 2)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the pyramid.

        Args:
            features: level -> (N, C, h, w).

        Returns:
            "p2", ... "p6" -> (N, channels, h, w), fine to coarse.
        """
        coarse_to_fine: dict[str, Tensor] = {}
        merged: Tensor | None = None
        for level in reversed(self.levels):
            lateral = self.lateral[level](features[level])
            if merged is not None:
                # under autocast on a GPU, the result of interpolate is float32
                upsampled = F.interpolate(merged, size=lateral.shape[-2:], mode="nearest").to(lateral.dtype)
                lateral = lateral.add_(upsampled)
            merged = lateral
            coarse_to_fine[_p(level)] = self.output[level](merged)
        pyramid = dict(reversed(coarse_to_fine.items()))
        pyramid[self.extra] = F.max_pool2d(pyramid[_p(self.levels[-1])], 1, 2)
        return pyramid


def _p(level: str) -> str:
    """Name of the pyramid's level for one of the backbone: "c2" -> "p2"."""
    return "p" + level[1:]
