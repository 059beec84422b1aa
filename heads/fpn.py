"""FeaturePyramid: C2..C5 -> P2..P6 (Lin et al., *Feature Pyramid Networks*, CVPR 2017, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone import FeatureSpec
from resnet_backbone.errors import InvalidValue
from resnet_backbone.norm import conv_layer


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, a nearest-neighbour top-down path, 3x3 output convolutions, and P6 as every second
    pixel of P5 (max pooling of 1x1, stride 2: detectron2's `LastLevelMaxPool`).

    Args: specs: the backbone's `feature_specs`; levels: which of them, fine to coarse; channels of every P level;
    norm behind every convolution, "none" for biases instead.
    `feature_specs` gives the levels it returns, "p2" ... "p6". Raises ValueError for levels the backbone lacks.
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
        """features: level -> (N, C, h, w) -> P level -> (N, channels, h, w), fine to coarse."""
        coarse_to_fine: dict[str, Tensor] = {}
        merged: Tensor | None = None
        for level in reversed(self.levels):
            lateral = self.lateral[level](features[level])
            merged = (
                lateral if merged is None else lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            )
            coarse_to_fine[_p(level)] = self.output[level](merged)
        pyramid = dict(reversed(coarse_to_fine.items()))
        pyramid[self.extra] = F.max_pool2d(pyramid[_p(self.levels[-1])], 1, 2)
        return pyramid


def _p(level: str) -> str:
    return "p" + level[1:]
