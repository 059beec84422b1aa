"""Anchors: A boxes a cell of every level's grid.

Glossary: L levels, A anchors a cell, (h, w) a level's grid. Order is rows, columns, then the A anchors of the cell:
index = (row * w + column) * A + anchor, as the RPN's outputs are flattened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue

from .conventions import Conventions
from .structures import ImageSize


class AnchorGrid(nn.Module):
    """Anchors for the levels of one detector.

    Args: sizes_px: level -> square roots of the anchors' areas; ratios: heights over widths; strides: level -> px.
    Cell anchors are centred on the cell's corner (0, 0), as detectron2 (offset 0) and torchvision place them.
    """

    def __init__(
        self,
        sizes_px: Mapping[str, Sequence[float]],
        ratios: Sequence[float],
        strides: Mapping[str, int],
        conventions: Conventions,
    ) -> None:
        super().__init__()
        if missing := [level for level in sizes_px if level not in strides]:
            raise InvalidValue(f"anchors are asked on {missing}, the neck gives {list(strides)}: name its levels")
        counts = {len(sizes) * len(ratios) for sizes in sizes_px.values()}
        if len(counts) != 1:
            raise InvalidValue(f"every level must have the same number of anchor sizes, got {dict(sizes_px)}")
        self.per_cell = counts.pop()
        self.levels = tuple(sizes_px)
        self.strides = {level: strides[level] for level in self.levels}
        self.conventions = conventions
        for level, sizes in sizes_px.items():
            cells = _cell_anchors(sizes, ratios)
            self.register_buffer(level, cells.round() if conventions.round_anchors else cells, persistent=False)

    def forward(self, levels: Mapping[str, Tensor], padded: tuple[int, int]) -> list[Tensor]:
        """levels: level -> (N, C, h, w); padded: height and width of `pixels` -> L of (h * w * A, 4), float32 or
        double."""
        return [self._grid(level, levels[level].shape[-2:], padded) for level in self.levels]

    def within(self, levels: Mapping[str, Tensor], sizes: Sequence[ImageSize]) -> list[Tensor]:
        """N of (T,) bool: anchors whose cell lies in the image, its sides rounded up to `own_padding_px`: what padding
        the image would have if it were alone (mmdetection's `valid_flags`)."""
        multiple, found = self.conventions.own_padding_px, []
        for size in sizes:
            height, width = (-(-side // multiple) * multiple for side in (size.height, size.width))
            flags = []
            for level in self.levels:
                rows, columns = levels[level].shape[-2:]
                stride, device = self.strides[level], levels[level].device
                y = torch.arange(rows, device=device) * stride < height
                x = torch.arange(columns, device=device) * stride < width
                flags.append((y[:, None] & x)[..., None].expand(-1, -1, self.per_cell).flatten())
            found.append(torch.cat(flags))
        return found

    def _grid(self, level: str, grid: torch.Size, padded: tuple[int, int]) -> Tensor:
        cells: Tensor = getattr(self, level)
        stride_y = stride_x = self.strides[level]
        if self.conventions.anchor_stride == "grid":
            stride_y, stride_x = padded[0] // grid[0], padded[1] // grid[1]
        y = torch.arange(grid[0], device=cells.device, dtype=cells.dtype) * stride_y
        x = torch.arange(grid[1], device=cells.device, dtype=cells.dtype) * stride_x
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        corners = torch.stack([xx, yy, xx, yy], dim=-1).reshape(-1, 1, 4)
        return (corners + cells).reshape(-1, 4)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # .half() and .bfloat16() on a detector leave its anchors in float32: they are coordinates
        before = {level: getattr(self, level) for level in self.levels}
        super()._apply(fn, recurse)
        for level, cells in before.items():
            now = getattr(self, level)
            if now.dtype not in (torch.float32, torch.float64):
                setattr(self, level, cells.to(now.device))
        return self


def _cell_anchors(sizes_px: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(A, 4) centred on zero; sizes run slower than ratios. A ratio is height / width at constant area."""
    rows = []
    for size in sizes_px:
        for ratio in ratios:
            width = math.sqrt(size * size / ratio)
            height = ratio * width
            rows.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(rows, dtype=torch.float32)
