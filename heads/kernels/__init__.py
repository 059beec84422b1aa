"""Operations with more than one implementation, and the one place where an implementation is chosen."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .nms import batched_nms
from .roi_align import roi_align_operator, roi_align_rows

__all__ = ["RoIAlign", "batched_nms", "roi_align", "roi_align_operator", "roi_align_rows"]


class RoIAlign(Protocol):
    """The signature of every implementation; their results differ by rounding only."""

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
    """RoIAlign with the fastest implementation for the device.

    Compiled and exported code, and code on a GPU, uses torchvision's operator; eager code on a CPU sums weighted rows.

    Args:
        feature: (N, C, H, W), in any precision; it is converted to that of the regions.
        regions: (R, 5), image index and xyxy in pixels of the image.
        size: side of the output, in bins.
        scale: cells of the feature map per pixel.
        samples: samples per bin and axis; 0 takes as many as there are cells under the bin.
        aligned: shift by half a pixel (correct) or not (torchvision's detectors).

    Returns:
        (R, C, size, size), in the precision of the regions.
    """
    feature = feature.to(regions.dtype)
    on_cpu = feature.device.type == "cpu" and not torch.compiler.is_compiling()
    kernel: RoIAlign = roi_align_rows if on_cpu else roi_align_operator
    return kernel(feature, regions, size=size, scale=scale, samples=samples, aligned=aligned)
