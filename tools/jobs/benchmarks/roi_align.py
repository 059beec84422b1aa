"""Rows of RoIAlign: forward, and forward and backward, with the settings of the box head and of the mask head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from heads.kernels import RoIAlign, roi_align, roi_align_operator

from .contenders import Comparison, Contender
from .equality import largest_difference
from .setting import Setting

TORCHVISION = "torchvision's kernel"


def roi_align_row(setting: Setting) -> Iterator[Comparison]:
    """Regions on a map of 256 channels: 1,000 of 7x7 bins, and 256 of 14x14.

    Args:
        setting: how to run.

    Yields:
        Four comparisons.
    """
    height, width = (40, 56) if setting.quick else (200, 272)
    share = 20 if setting.quick else 1
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(1, 256, height, width, generator=generator).to(setting.device)
    for name, size, count in (("box", 7, 1000 // share), ("mask", 14, 256 // share)):
        regions = _regions(count, 4 * height, 4 * width, generator).to(setting.device)
        options: dict[str, Any] = {"size": size, "scale": 0.25, "samples": 2, "aligned": False}
        gradient = torch.randn(count, 256, size, size, generator=generator).to(setting.device)
        rows = _maps(feature)
        pooled = [f(m, regions, **options) for f, m in ((roi_align, rows), (roi_align_operator, feature))]
        equal = [f"outputs within {largest_difference(pooled[:1], pooled[1:]):.1e} of the largest value"]

        last = gradient.to(memory_format=torch.channels_last)
        for what, theirs, ours in (
            ("forward", _forward(roi_align_operator, feature, regions), _forward(roi_align, rows, regions)),
            (
                "forward and backward",
                _both_ways(roi_align_operator, feature, regions, gradient),
                _both_ways(roi_align, rows, regions, last),
            ),
        ):
            yield Comparison(
                "roi_align",
                f"RoIAlign, {name} settings, {what}: {count} regions of {size}x{size} bins on {height}x{width} cells",
                [
                    Contender(TORCHVISION, partial(theirs, **options)),
                    Contender("heads.kernels.roi_align", partial(ours, **options), ours=True),
                ],
                reference=TORCHVISION,
                items=(count, "regions"),
                equal=equal,
            )


def _forward(kernel: RoIAlign, maps: Tensor, regions: Tensor) -> Callable[..., None]:
    def work(**options: Any) -> None:
        with torch.inference_mode():
            kernel(maps, regions, **options)

    return work


def _both_ways(kernel: RoIAlign, maps: Tensor, regions: Tensor, gradient: Tensor) -> Callable[..., None]:
    def work(**options: Any) -> None:
        leaf = maps.detach().requires_grad_()
        kernel(leaf, regions, **options).backward(gradient)

    return work


def _maps(feature: Tensor) -> Tensor:
    """The map as our pyramid gives it."""
    return feature.contiguous(memory_format=torch.channels_last)


def _regions(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(R, 5): index 0 and boxes with sides of 5 to 105 px."""
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 105.0, height - 105.0])
    sides = torch.rand(count, 2, generator=generator) * 100 + 5
    return torch.cat([torch.zeros(count, 1), corner, corner + sides], dim=1)
