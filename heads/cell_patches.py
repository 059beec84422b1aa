"""Patches of features around chosen cells of several levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_patches(maps: Sequence[Tensor], image: Tensor, cell: Tensor, *, reach: int) -> tuple[Tensor, Tensor]:
    """Gather the cells around chosen cells. A GPU is not waited for: every level is read for all of them.

    Args:
        maps: L of (N, C, h, w).
        image: (S,) int64, the image of each chosen cell, 0..N - 1.
        cell: (S,) int64, cells counted row by row and level by level.
        reach: how many cells to take on each side.

    Returns:
        Patches (S, C, P, P), P = 2 * reach + 1, in channels_last memory, and where they lie within their level,
        (S, P, P) bool. Outside, values are zero.
    """
    around = torch.arange(-reach, reach + 1, device=cell.device)
    patches, within, start = None, None, 0
    for level in maps:
        channels, height, width = level.shape[1:]
        here = (cell >= start) & (cell < start + height * width)
        local = (cell - start).clamp(0, height * width - 1)
        row = (local // width)[:, None] + around
        column = (local % width)[:, None] + around
        rows_inside = (row >= 0) & (row < height) & here[:, None]
        inside = rows_inside[:, :, None] & ((column >= 0) & (column < width))[:, None]
        first = (image[:, None] * height + row.clamp(0, height - 1)) * width
        position = first[:, :, None] + column.clamp(0, width - 1)[:, None]
        values = F.embedding(position, level.permute(0, 2, 3, 1).reshape(-1, channels))
        values = torch.where(inside[..., None], values, 0)
        patches = values if patches is None else patches + values
        within = inside if within is None else within | inside
        start += height * width
    assert patches is not None and within is not None
    return patches.permute(0, 3, 1, 2), within
