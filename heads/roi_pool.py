"""RegionPooler: which level a region is read from, and RoIAlign on it.

Glossary: N images, R regions of one image, S = sum of R over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resnet_backbone import FeatureSpec
from resnet_backbone.errors import InvalidValue

from . import boxes as B
from .conventions import Conventions
from .kernels import RoIAlign, roi_align


class RegionPooler(nn.Module):
    """Levels and regions -> (S, C, size, size), aligned to the regions (He et al., *Mask R-CNN*, 2017).

    A region of 224 px (square root of its area) is read from the level of stride 16, one of half that side from the
    next finer level (FPN, equation 1). RoIAlign runs in the boxes' precision, never in half.

    Args:
        specs: level -> channels and stride, as the neck publishes them.
        levels: the levels that regions are read from, fine to coarse.
        size: side of a pooled region, in bins.
        conventions: what the projects do differently.
        stage: a module that every pooled region goes through before a head reads it: the fifth stage of C4 detectors.
        kernel: the implementation of RoIAlign.

    Raises:
        InvalidValue: a level that the neck does not return.
    """

    canonical_px = 224.0
    canonical_stride = 16

    def __init__(
        self,
        specs: Mapping[str, FeatureSpec],
        levels: Sequence[str],
        *,
        size: int,
        conventions: Conventions,
        stage: nn.Module | None = None,
        kernel: RoIAlign = roi_align,
    ) -> None:
        super().__init__()
        if missing := [level for level in levels if level not in specs]:
            raise InvalidValue(f"regions are to be read from {missing}, the neck gives {list(specs)}: name its levels")
        self.levels, self.size, self.conventions = tuple(levels), size, conventions
        self.strides = [specs[level].stride for level in levels]
        self.stage = stage
        self.kernel = kernel

    def forward(self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """levels: level -> (N, C, h, w); boxes: N of (R, 4) -> (S, C, size, size), image by image; what the stage
        makes of them where there is one."""
        pooled = self._pool(levels, boxes)
        return pooled if self.stage is None else self.stage(pooled)

    def _pool(self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        index = torch.cat([boxes_of.new_full((len(boxes_of), 1), i) for i, boxes_of in enumerate(boxes)])
        regions = torch.cat([index, torch.cat(list(boxes))], dim=1)
        features = [levels[level] for level in self.levels]
        if len(features) == 1:
            return self._align(features[0], regions, self.strides[0])
        level_of = self.level_of(regions[:, 1:])
        parts, order = [], []
        for i, (feature, stride) in enumerate(zip(features, self.strides)):
            where = (level_of == i).nonzero().flatten()
            order.append(where)
            parts.append(self._align(feature, regions[where], stride))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def level_of(self, boxes: Tensor) -> Tensor:
        """boxes: (S, 4) -> (S,) int64 index into the levels."""
        finest = math.log2(self.strides[0] / self.canonical_stride)
        ratio = B.area(boxes).sqrt() / self.canonical_px + self.conventions.level_ratio_eps
        wanted = (torch.log2(ratio) + self.conventions.level_log_eps).floor()
        return (wanted - finest).clamp(0, len(self.levels) - 1).to(torch.int64)

    def _align(self, feature: Tensor, regions: Tensor, stride: int) -> Tensor:
        samples, aligned = self.conventions.roi_samples, self.conventions.roi_aligned
        return self.kernel(feature, regions, size=self.size, scale=1.0 / stride, samples=samples, aligned=aligned)
