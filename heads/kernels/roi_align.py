"""Implementations of RoIAlign (He et al., *Mask R-CNN*, 2017, section 3): torchvision's operator, and weighted rows.

RoIAlign averages bilinear samples on a regular grid in every bin, so a bin is a weighted sum of cells of the feature
map. With the channels of a cell side by side in memory, that is a sum of rows of a table, which torch computes with
`embedding_bag` on all cores. The gradient is the same sum with the roles of bins and cells exchanged. Both are
deterministic. torchvision's CPU operator gathers channel by channel, and computes gradients on one core.

R regions, C channels, (H, W) the grid, P bins per side, K cells of a bin along one axis.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align_operator(
    feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """RoIAlign by torchvision's operator; arguments as for `heads.kernels.RoIAlign`."""
    # not at the top: torchvision imports the compiler of torch, which takes longer than torch itself
    import torchvision

    # the operator needs contiguous features and would copy channels_last ones itself; in half precision it would round
    # the positions too
    features = feature.to(regions.dtype).contiguous()
    pooled: Tensor = torchvision.ops.roi_align(features, regions, size, scale, samples, aligned)
    return pooled.to(feature.dtype)


def roi_align_rows(feature: Tensor, regions: Tensor, *, size: int, scale: float, samples: int, aligned: bool) -> Tensor:
    """RoIAlign by sums of weighted rows; arguments as for `heads.kernels.RoIAlign`.

    Regions get no gradient, as in torchvision. The result is channels_last in memory.
    """
    channels, height, width = feature.shape[1:]
    edges = regions[:, 1:].detach() * scale - (0.5 if aligned else 0.0)
    extent = edges[:, 2:] - edges[:, :2]
    if not aligned:  # without the half-pixel shift, every region covers at least one cell
        extent = extent.clamp(min=1)
    rows = _cells(edges[:, 1], extent[:, 1], size, height, samples)
    columns = _cells(edges[:, 0], extent[:, 0], size, width, samples)
    image_start = regions[:, 0].detach().int() * (height * width)
    bins = _Bins.of(rows, columns, image_start, width, ragged=samples == 0)
    table = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled: Tensor = _WeightedRows.apply(table, bins)
    return pooled.reshape(len(regions), size, size, channels).permute(0, 3, 1, 2)


class _Axis(NamedTuple):
    """Which cells the bins of regions take along one axis.

    Attributes:
        cells: (R, P, K) int32.
        weights: (R, P, K) their weights.
        used: (R,) int64, how many of the K are used.
    """

    cells: Tensor
    weights: Tensor
    used: Tensor


def _cells(low: Tensor, extent: Tensor, bins: int, cells: int, samples: int) -> _Axis:
    """Cells and weights of one axis, with positions in the order of operations of torchvision's kernel.

    Samples outside [-1, cells] have weight zero; samples beyond the centre of the outermost cell read that cell.

    Args:
        low: (R,) start of the regions, in cells.
        extent: (R,) length of the regions, in cells.
        bins: P, number of bins.
        cells: number of cells of the axis.
        samples: samples per bin; 0 takes as many as there are cells under the bin.

    Returns:
        The cells. With a fixed number of samples, every sample has two entries. With adaptive sampling, the samples
        of a bin that read the same cell share one entry.
    """
    # extent is an argument: computed as high - low, rounding could make one cell a little longer, and its ceiling two
    bin_size = extent / bins
    count = torch.full_like(low, samples) if samples else bin_size.ceil().nan_to_num(0.0, posinf=0.0).clamp(min=0)
    most = samples or (int(count.max()) if len(count) else 0)
    step = torch.arange(most, device=low.device, dtype=low.dtype)
    bin_start = torch.arange(bins, device=low.device, dtype=low.dtype) * bin_size[:, None]
    within = (step + 0.5) * bin_size[:, None] / count.clamp(min=1)[:, None]
    position = low[:, None, None] + bin_start[:, :, None] + within[:, None]  # (R, bins, most)
    counts = (step < count[:, None])[:, None] & (position >= -1) & (position <= cells)
    share = counts / count.clamp(min=1)[:, None, None]
    position = position.nan_to_num(0.0).clamp(0, cells - 1)
    first = position.floor()
    fraction = position - first
    index = torch.stack([first, (first + 1).clamp(max=cells - 1)], dim=3).flatten(2).int()
    weights = torch.stack([share * (1 - fraction), share * fraction], dim=3).flatten(2)
    if samples:
        return _Axis(index, weights, torch.full((len(low),), 2 * samples, device=low.device))
    lowest = index[:, :, :1]
    offset = torch.where(weights > 0, index - lowest, 0)
    shared = weights.new_zeros(len(low), bins, most + 2)
    shared.scatter_add_(2, offset.long(), weights)
    reach = offset.flatten(1).amax(1) + 1 if most else torch.zeros_like(low, dtype=torch.int32)
    index = lowest + torch.arange(most + 2, device=low.device, dtype=torch.int32) if most else index
    return _Axis(index.clamp(max=cells - 1), shared, torch.where(count > 0, reach, 0).long())


class _Bins(NamedTuple):
    """The cells of all bins: E pairs of a bin and a cell, bin by bin.

    Attributes:
        cells: (E,) int32, rows of the table.
        weights: (E,).
        starts: (R * P * P,) int32, where the pairs of a bin begin.
        bin_of: (E,) int32, the bin of a pair; None if all bins have equally many.
    """

    cells: Tensor
    weights: Tensor
    starts: Tensor
    bin_of: Tensor | None

    @classmethod
    def of(cls, rows: _Axis, columns: _Axis, image_start: Tensor, width: int, *, ragged: bool) -> _Bins:
        """Combine both axes.

        Args:
            rows: cells along the height.
            columns: cells along the width.
            image_start: (R,) int32, the first row of the table of the region's image.
            width: of the grid.
            ragged: whether regions differ in the number of cells of a bin.

        Returns:
            The bins.
        """
        regions, size, device = len(image_start), rows.cells.shape[1], image_start.device
        row_starts = image_start[:, None, None] + rows.cells * width
        if not ragged:
            cells = row_starts[:, :, None, :, None] + columns.cells[:, None, :, None, :]
            weights = rows.weights[:, :, None, :, None] * columns.weights[:, None, :, None, :]
            each = cells.shape[3] * cells.shape[4]
            starts = torch.arange(regions * size * size, device=device, dtype=torch.int32) * each
            return cls(cells.flatten(), weights.flatten(), starts, None)
        counts = (rows.used * columns.used).repeat_interleave(size * size)
        bin_of = torch.arange(len(counts), device=device).repeat_interleave(counts)
        starts = counts.cumsum(0) - counts
        region, within = bin_of // (size * size), bin_of % (size * size)
        place = torch.arange(len(bin_of), device=device) - starts[bin_of]
        across = columns.used[region]
        row = region * size + within // size, place // across
        column = region * size + within % size, place % across
        cells = row_starts.flatten(0, 1)[row] + columns.cells.flatten(0, 1)[column]
        weights = rows.weights.flatten(0, 1)[row] * columns.weights.flatten(0, 1)[column]
        return cls(cells, weights, starts.int(), bin_of.int())


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, bins: _Bins) -> Tensor:
        ctx.save_for_backward(*bins)
        ctx.rows = len(table)
        return _sum_rows(table, bins.cells, bins.weights, bins.starts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        bins = _Bins(*ctx.saved_tensors)
        order = bins.cells.argsort(stable=True)  # the pairs cell by cell
        counts = torch.bincount(bins.cells, minlength=ctx.rows)
        starts = (counts.cumsum(0) - counts).int()
        if bins.bin_of is None:
            bin_of = (order // max(1, len(bins.cells) // max(1, len(bins.starts)))).int()
        else:
            bin_of = bins.bin_of[order]
        return _sum_rows(gradient, bin_of, bins.weights[order], starts), None


def _sum_rows(table: Tensor, index: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Sums of weighted rows: group g takes the entries from starts[g] to starts[g + 1]."""
    if not len(starts) or not len(table):
        return table.new_zeros(len(starts), table.shape[1])
    with torch.autocast(table.device.type, enabled=False):
        return F.embedding_bag(
            index, table.contiguous(), starts, mode="sum", per_sample_weights=weights.to(table.dtype)
        )
