"""Implementations of RoIAlign (He et al., *Mask R-CNN*, 2017, section 3).

There are three: torchvision's operator, the same operator on slices of the channels, and two matrix products. R
regions, C channels, (H, W) the grid, P bins per side.

RoIAlign averages bilinear samples on a regular grid in every bin. The weights of the samples are products of a row part
and a column part, so the operation is out[c] = rows @ feature[c] @ columns^T with rows (P, H) and columns (P, W).
torchvision's CPU operator computes gradients on one core; matrix products use all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor

# Number of cells at which both take the same time on a CPU. The time of the products grows with H * W, that of the
# operator does not.
SMALL_GRID = 8192


def roi_align_operator(
    feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """RoIAlign by torchvision's operator; arguments as for `heads.kernels.RoIAlign`."""
    # the operator needs contiguous features and would copy channels_last ones itself
    pooled: Tensor = torchvision.ops.roi_align(feature.contiguous(), regions, size, scale, samples, aligned)
    return pooled


def roi_align_by_channels(
    feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """RoIAlign by torchvision's CPU operator, one slice of the channels per thread.

    The operator uses one core. Its backward pass would take the largest part of a training step. Arguments as for
    `heads.kernels.RoIAlign`.
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
        parts = torch.split(gradient, [out.shape[1] for _, out in graphs], dim=1)
        with ThreadPoolExecutor(len(graphs)) as pool:
            gradients = pool.map(lambda g, part: torch.autograd.grad(g[1], g[0], part.contiguous())[0], graphs, parts)
            return torch.cat(list(gradients), dim=1), None


def _with_graph(part: Tensor, kernel: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A slice of the channels and its pooled regions, with a graph of their own."""
    part.requires_grad_()
    with torch.enable_grad():
        return part, kernel(part)


def roi_align_products(
    feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """Two matrix products; arguments as for `heads.kernels.RoIAlign`.

    Regions get no gradient, as in torchvision.
    """
    height, width = feature.shape[2:]
    edges = regions[:, 1:].detach() * scale - (0.5 if aligned else 0.0)
    extent = edges[:, 2:] - edges[:, :2]
    if not aligned:  # without the half-pixel shift, every region covers at least one cell
        extent = extent.clamp(min=1)
    rows = bin_weights(edges[:, 1], extent[:, 1], size, height, samples)
    columns = bin_weights(edges[:, 0], extent[:, 0], size, width, samples)
    channels = feature.shape[1]
    image_of = regions[:, 0].long()
    parts, order = [], []
    with torch.autocast("cpu", enabled=False):
        for index, plane in enumerate(feature.permute(0, 2, 3, 1)):  # (H, W, C)
            indices = (image_of == index).nonzero().flatten()
            row_sums = rows[indices].flatten(0, 1) @ plane.reshape(height, width * channels)
            parts.append(columns[indices].unsqueeze(1) @ row_sums.reshape(len(indices), size, width, channels))
            order.append(indices)
    out = torch.cat(parts)
    if bool((image_of.diff() < 0).any()):  # the regions are not ordered by image
        out = out[torch.cat(order).argsort()]
    return out.permute(0, 3, 1, 2)


def bin_weights(low: Tensor, extent: Tensor, bins: int, cells: int, samples: int) -> Tensor:
    """Weights of the cells of one axis in the bins of regions, as in torchvision's kernel.

    Samples outside [-1, cells] have weight zero; samples beyond the centre of the outermost cell read that cell.

    Args:
        low: (R,) start of the regions, in cells.
        extent: (R,) length of the regions, in cells.
        bins: P, number of bins.
        cells: number of cells of the axis.
        samples: samples per bin; 0 takes as many as there are cells under the bin.

    Returns:
        (R, bins, cells).
    """
    # extent is an argument: computed as high - low, rounding could make one cell a little longer, and its ceiling two
    bin_size = extent / bins
    count = bin_size.ceil().clamp(min=0) if samples == 0 else torch.full_like(low, samples)
    most = int(count.max()) if len(count) else 0
    step = torch.arange(most, device=low.device, dtype=low.dtype)
    within = (step + 0.5) / count.clamp(min=1)[:, None]  # (R, most)
    bin_position = torch.arange(bins, device=low.device, dtype=low.dtype)[:, None] + within[:, None]
    position = low[:, None, None] + bin_size[:, None, None] * bin_position  # (R, bins, most)
    counts = (step < count[:, None])[:, None] & (position >= -1) & (position <= cells)
    position = position.clamp(0, cells - 1)
    first = position.floor()
    fraction = position - first
    share = counts / count.clamp(min=1)[:, None, None]
    weights = position.new_zeros(len(low), bins, cells)
    weights.scatter_add_(2, first.long(), share * (1 - fraction))
    return weights.scatter_add_(2, (first.long() + 1).clamp(max=cells - 1), share * fraction)
