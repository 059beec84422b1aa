"""Implementations of RoIAlign (He et al., *Mask R-CNN*, 2017).

torchvision's operator, the same operator on slices of the channels, and two matrix products. R regions, C channels,
H x W the grid, P bins per side. RoIAlign averages bilinear samples on a regular grid in each bin. Positions and weights
of the samples are products of a row part and a column part, so the operation is out[c] = rows @ feature[c] @ columns^T
with rows (P, H) and columns (P, W). torchvision's CPU operator scatters gradients on one core; matrix products use all
cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

# cells of a grid where both cost the same on a CPU: the cost of the products grows with H * W, the operator's does not
SMALL_GRID = 8192


def roi_align_operator(
    feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """torchvision's operator; arguments as for `heads.kernels.RoIAlign`."""
    # it reads planes, and would copy a channels_last feature by itself
    return torchvision.ops.roi_align(feature.contiguous(), regions, size, scale, samples, aligned)


def roi_align_by_channels(
    feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """torchvision's CPU operator on one slice of the channels per thread; arguments as for `heads.kernels.RoIAlign`.

    The operator works on one core, and its backward pass would be the longest part of a training step.
    """
    kernel = partial(
        torchvision.ops.roi_align,
        boxes=regions,
        output_size=size,
        spatial_scale=scale,
        sampling_ratio=samples,
        aligned=aligned,
    )
    out: Tensor = _ByChannels.apply(feature, kernel)
    return out


class _ByChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, kernel: Callable[[Tensor], Tensor]) -> Tensor:
        slices = [part.contiguous() for part in feature.detach().chunk(torch.get_num_threads(), dim=1)]
        with ThreadPoolExecutor(len(slices)) as pool:
            ctx.graphs = list(pool.map(lambda part: _with_graph(part, kernel), slices))
        return torch.cat([out.detach() for _, out in ctx.graphs], dim=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        graphs, ctx.graphs = ctx.graphs, None
        parts = gradient.split([out.shape[1] for _, out in graphs], dim=1)
        with ThreadPoolExecutor(len(graphs)) as pool:
            found = pool.map(lambda g, part: torch.autograd.grad(g[1], g[0], part.contiguous())[0], graphs, parts)
            return torch.cat(list(found), dim=1), None


def _with_graph(part: Tensor, kernel: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    part.requires_grad_()
    with torch.enable_grad():
        return part, kernel(part)


def roi_align_products(
    feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """Two matrix products; arguments as for `heads.kernels.RoIAlign`. Regions get no gradient, as in torchvision."""
    height, width = feature.shape[2:]
    edges = regions[:, 1:].detach() * scale - (0.5 if aligned else 0.0)
    extent = edges[:, 2:] - edges[:, :2]
    if not aligned:  # the older form gives every region at least one cell
        extent = extent.clamp(min=1)
    rows = bin_weights(edges[:, 1], extent[:, 1], size, height, samples)
    columns = bin_weights(edges[:, 0], extent[:, 0], size, width, samples)
    channels = feature.shape[1]
    image_of = regions[:, 0].long()
    parts, order = [], []
    with torch.autocast("cpu", enabled=False):
        for index, plane in enumerate(feature.permute(0, 2, 3, 1)):  # (H, W, C)
            mine = (image_of == index).nonzero().flatten()
            across = rows[mine].flatten(0, 1) @ plane.reshape(height, width * channels)
            parts.append(columns[mine].unsqueeze(1) @ across.reshape(len(mine), size, width, channels))
            order.append(mine)
    out = torch.cat(parts)
    if bool((image_of.diff() < 0).any()):  # the regions did not come image by image
        out = out[torch.cat(order).argsort()]
    return out.permute(0, 3, 1, 2)


def bin_weights(low: Tensor, extent: Tensor, bins: int, cells: int, samples: int) -> Tensor:
    """low, extent: (R,) in cells -> (R, bins, cells): how much each cell counts in each bin of a line.

    Samples outside [-1, cells] count nothing, those beyond an edge cell's centre read that cell (torchvision's kernel).
    """
    # not from low + extent back again: of one cell rounding may make a little more, and its ceiling two samples
    bin_size = extent / bins
    count = bin_size.ceil().clamp(min=0) if samples == 0 else torch.full_like(low, samples)
    most = int(count.max()) if len(count) else 0
    step = torch.arange(most, device=low.device, dtype=low.dtype)
    within = (step + 0.5) / count.clamp(min=1)[:, None]  # (R, most)
    place = torch.arange(bins, device=low.device, dtype=low.dtype)[:, None] + within[:, None]
    position = low[:, None, None] + bin_size[:, None, None] * place  # (R, bins, most)
    counts = (step < count[:, None])[:, None] & (position >= -1) & (position <= cells)
    position = position.clamp(0, cells - 1)
    first = position.floor()
    fraction = position - first
    share = counts / count.clamp(min=1)[:, None, None]
    weights = position.new_zeros(len(low), bins, cells)
    weights.scatter_add_(2, first.long(), share * (1 - fraction))
    return weights.scatter_add_(2, (first.long() + 1).clamp(max=cells - 1), share * fraction)
