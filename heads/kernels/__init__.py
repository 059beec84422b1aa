"""Operations with more than one implementation, and the one place where an implementation is chosen."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .roi_align import SMALL_GRID, roi_align_by_channels, roi_align_operator, roi_align_products

__all__ = ["RoIAlign", "roi_align", "roi_align_by_channels", "roi_align_operator", "roi_align_products"]


class RoIAlign(Protocol):
    """The signature of every implementation; they agree to rounding."""

    def __call__(
        self, feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
    ) -> Tensor:
        """Pool regions of one level.

        Args:
            feature: (N, C, H, W), in the precision of the regions.
            regions: (R, 5), image index and xyxy in pixels of the image.
            size: side of the output, in bins.
            scale: cells of the feature map per pixel.
            samples: samples per bin and axis; 0 takes as many as there are cells under the bin.
            aligned: shift by half a pixel (correct) or not (torchvision's detectors).

        Returns:
            (R, C, size, size).
        """
        ...


def roi_align(feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
    """RoIAlign by the implementation that is fastest here; arguments as for `RoIAlign`, in any precision.

    Compiled and exported code always gets torchvision's operator. In eager mode a CPU takes matrix products on small
    grids and, when gradients are needed, one slice of the channels per thread on large ones.
    """
    feature = feature.to(regions.dtype)
    kernel: RoIAlign = roi_align_operator
    if feature.device.type == "cpu" and not torch.compiler.is_compiling():
        if feature.shape[2] * feature.shape[3] <= SMALL_GRID:
            kernel = roi_align_products
        elif feature.requires_grad and torch.is_grad_enabled():
            kernel = roi_align_by_channels
    return kernel(feature, regions, size=size, scale=scale, samples=samples, aligned=aligned)
