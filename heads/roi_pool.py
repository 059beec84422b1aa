"""RegionPooler: RoIAlign of every region on the level that fits its size.

N images, R regions of one image, S = sum of R over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue
from resnet_backbone.protocols import FeatureSpec

from . import boxes as B
from .conventions import Conventions
from .kernels import RoIAlign, roi_align


class RegionPooler(nn.Module):
    """Pools the features of regions (RoIAlign; He et al., *Mask R-CNN*, 2017, section 3).

    A region of 224 px (square root of its area) is pooled from the level of stride 16, one of half that side from the
    next finer level (Lin et al., *Feature Pyramid Networks*, CVPR 2017, equation 1). RoIAlign runs in the precision of
    the boxes, never in half precision, unless `keep_half` is set.

    Args:
        specs: level -> channels and stride, the neck's `feature_specs`.
        levels: the levels from which regions are pooled, fine to coarse.
        size: side of a pooled region, in bins.
        conventions: what the projects do differently.
        stage: a module that runs on the pooled regions: C5 in C4 detectors. None: the regions are returned as they are.
        kernel: the implementation of RoIAlign.

    Attributes:
        keep_half: whether features in half precision are pooled in it, for copies that are made for inference
            (`RCNN.for_inference`). Positions and weights of the samples are computed in the precision of the boxes.

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
            raise InvalidValue(f"regions are read from {missing}, the neck gives {list(specs)}: name its levels")
        self.levels, self.size, self.conventions = tuple(levels), size, conventions
        self.strides = [specs[level].stride for level in levels]
        self.stage = stage
        self.kernel = kernel
        self.keep_half = False

    def forward(self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool regions.

        Args:
            levels: level -> (N, C, h, w).
            boxes: N of (R, 4) xyxy, pixels.

        Returns:
            (S, C, size, size), image by image; with a stage its output for them.
        """
        pooled = self._pool(levels, boxes)
        if self.stage is not None:
            pooled = self.stage(pooled)
        return pooled

    def _pool(self, levels: Mapping[str, Tensor], boxes: Sequence[Tensor]) -> Tensor:
        index = torch.cat([boxes_of.new_full((len(boxes_of), 1), i) for i, boxes_of in enumerate(boxes)])
        regions = torch.cat([index, torch.cat(list(boxes))], dim=1)
        features = [levels[level] for level in self.levels]
        if not (self.keep_half and features[0].dtype in B.HALF):
            features = [feature.to(regions.dtype) for feature in features]
        if len(features) == 1:
            return self._align(features[0], regions, self.strides[0])
        level_of = self.level_of(regions[:, 1:])
        order = level_of.argsort(stable=True)
        levels_there = torch.arange(len(features), device=level_of.device)
        counts = (level_of[:, None] == levels_there).sum(0).tolist()  # a GPU is waited for here, and nowhere else
        parts = [
            self._align(feature, part, stride)
            for feature, part, stride in zip(features, torch.split(regions[order], counts), self.strides)
        ]
        pooled, rows = torch.cat(parts), order.argsort()
        if pooled.is_contiguous(memory_format=torch.channels_last):  # indexing would give up this order
            return pooled.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
        return pooled[rows]

    def level_of(self, boxes: Tensor) -> Tensor:
        """Choose the level of every region.

        Args:
            boxes: (S, 4) xyxy, pixels.

        Returns:
            (S,) int64, index of the level, fine to coarse.
        """
        finest = math.log2(self.strides[0] / self.canonical_stride)
        ratio = B.area(boxes).sqrt() / self.canonical_px + self.conventions.level_ratio_eps
        level = (torch.log2(ratio) + self.conventions.level_log_eps).floor()
        return (level - finest).clamp(0, len(self.levels) - 1).to(torch.int64)

    def _align(self, feature: Tensor, regions: Tensor, stride: int) -> Tensor:
        samples, aligned = self.conventions.roi_samples, self.conventions.roi_aligned
        return self.kernel(feature, regions, size=self.size, scale=1.0 / stride, samples=samples, aligned=aligned)
