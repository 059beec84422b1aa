"""Anchors of the region proposal network: A boxes per cell of every level's grid.

L levels, A anchors per cell, (h, w) the grid of a level. Anchors are ordered by rows, columns and the A anchors of the
cell, as the outputs of the RPN are flattened: index = (row * w + column) * A + anchor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue

from .conventions import Conventions
from .structures import ImageSize


class AnchorGrid(nn.Module):
    """Anchors for the levels of one detector.

    The anchors of a cell are centred on its corner (0, 0), as in detectron2 (offset 0) and torchvision.

    Args:
        sizes_px: level -> square roots of the anchors' areas, pixels.
        ratios: heights of the anchors divided by their widths.
        strides: level -> pixels of the image per cell.
        conventions: what the projects do differently.

    Attributes:
        levels: the levels with anchors, fine to coarse.
        per_cell: A, the number of anchors per cell.

    Raises:
        InvalidValue: a level that the neck does not return, or different numbers of sizes per level.
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
            raise InvalidValue(f"anchors are defined for {missing}, the neck gives {list(strides)}: name its levels")
        counts = {len(sizes) * len(ratios) for sizes in sizes_px.values()}
        if len(counts) != 1:
            raise InvalidValue(
                f"every level must have the same number of anchor sizes, got {dict(sizes_px)}: give as many for each"
            )
        self.per_cell = counts.pop()
        self.levels = tuple(sizes_px)
        self.strides = {level: strides[level] for level in self.levels}
        self.conventions = conventions
        for level, sizes in sizes_px.items():
            cell_anchors = _cell_anchors(sizes, ratios)
            if conventions.round_anchors:
                cell_anchors = cell_anchors.round()
            self.register_buffer(level, cell_anchors, persistent=False)

    def forward(self, levels: Mapping[str, Tensor], padded: tuple[int, int]) -> list[Tensor]:
        """Compute the anchors of a batch; they are the same for every image.

        Args:
            levels: level -> (N, C, h, w).
            padded: height and width of the batch with padding, pixels.

        Returns:
            L of (h * w * A, 4) xyxy, pixels, float32 or float64.
        """
        return [self._grid(level, levels[level].shape[-2:], padded) for level in self.levels]

    def within(self, levels: Mapping[str, Tensor], sizes: Sequence[ImageSize]) -> list[Tensor]:
        """Find the anchors with their cell in the image, as mmdetection's `valid_flags`.

        The sides of an image are rounded up to a multiple of `Conventions.own_padding_px`: the padding that the image
        would have in a batch of its own.

        Args:
            levels: level -> (N, C, h, w).
            sizes: N image sizes without padding.

        Returns:
            N of (T,) bool, T the number of anchors of all levels.
        """
        multiple, flags_of_images = self.conventions.own_padding_px, []
        for size in sizes:
            height, width = (-(-side // multiple) * multiple for side in (size.height, size.width))
            flags = []
            for level in self.levels:
                rows, columns = levels[level].shape[-2:]
                stride, device = self.strides[level], levels[level].device
                y = torch.arange(rows, device=device) * stride < height
                x = torch.arange(columns, device=device) * stride < width
                flags.append((y[:, None] & x)[..., None].expand(-1, -1, self.per_cell).flatten())
            flags_of_images.append(torch.cat(flags))
        return flags_of_images

    def _grid(self, level: str, grid: torch.Size, padded: tuple[int, int]) -> Tensor:
        """(h * w * A, 4): the anchors of one level."""
        cell_anchors: Tensor = getattr(self, level)
        stride_y = stride_x = self.strides[level]
        if self.conventions.anchor_stride == "grid":
            stride_y, stride_x = padded[0] // grid[0], padded[1] // grid[1]
        y = torch.arange(grid[0], device=cell_anchors.device, dtype=cell_anchors.dtype) * stride_y
        x = torch.arange(grid[1], device=cell_anchors.device, dtype=cell_anchors.dtype) * stride_x
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        corners = torch.stack([xx, yy, xx, yy], dim=-1).reshape(-1, 1, 4)
        return (corners + cell_anchors).reshape(-1, 4)

    def _apply(self, fn: Any, recurse: bool = True) -> AnchorGrid:
        # anchors are coordinates: .half() and .bfloat16() on a detector must leave them in float32
        before = {level: getattr(self, level) for level in self.levels}
        module: Any = super()  # torch does not annotate this method
        module._apply(fn, recurse)
        for level, cell_anchors in before.items():
            converted = getattr(self, level)
            if converted.dtype not in (torch.float32, torch.float64):
                setattr(self, level, cell_anchors.to(converted.device))
        return self


def _cell_anchors(sizes_px: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(A, 4) centred on zero, ordered by sizes and then ratios; a ratio is height / width at constant area."""
    rows = []
    for size in sizes_px:
        for ratio in ratios:
            width = math.sqrt(size * size / ratio)
            height = ratio * width
            rows.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(rows, dtype=torch.float32)
