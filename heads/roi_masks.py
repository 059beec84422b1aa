"""Masks in the frames of their boxes, as the mask head gives them, and how they are pasted into the image.

R instances, M the side of a mask head's output in cells (28), H and W the image in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from .masks import BitMasks, bare
from .rle import Columns, Rle, encode_columns

_LINES = 2**16  # rows and columns of masks whose weights are held at once: 7 MiB for masks of 28 cells
PastedColumns = tuple[Tensor, int, int]  # as `rle.Columns`


@dataclass(frozen=True)
class RoiMasks:
    """The output of the mask head, and how it is pasted into an image.

    Attributes:
        probabilities: (R, M, M), 0 to 1, each in the frame of its box.
        paste_rule: `Conventions.mask_paste`: "exact" or "integer".
    """

    probabilities: Tensor
    paste_rule: Literal["exact", "integer"] = "exact"

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getitem__(self, index: Tensor | slice) -> RoiMasks:
        """A subset: a slice, a mask (R,) of bool, or indices (S,) of int64."""
        return RoiMasks(self.probabilities[index], self.paste_rule)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RoiMasks:
        """Move the probabilities to a device; arguments as for `torch.Tensor.to`."""
        return RoiMasks(self.probabilities.to(device, non_blocking=non_blocking), self.paste_rule)

    def pin_memory(self) -> RoiMasks:
        """The probabilities in page-locked memory, from which copies to a GPU need not be waited for."""
        return RoiMasks(self.probabilities.pin_memory(), self.paste_rule)

    def paste(self, boxes: Tensor, height: int, width: int, *, threshold: float = 0.5) -> PastedMasks:
        """Paste the masks into an image.

        With the rule "exact", masks are sampled bilinearly at the centres of the pixels, as in detectron2's
        `paste_masks_in_image`, but only inside the window of every box: bilinear weights are separable, so a window
        needs two small matrix products. With the rule "integer", as in torchvision's function of the same name.

        Args:
            boxes: (R, 4) xyxy, pixels of the image.
            height: of the image, pixels.
            width: of the image, pixels.
            threshold: a pixel is set if its probability is at least this (rule "integer": larger than this).

        Returns:
            (R, height, width) bitmaps, each computed when it is used.
        """
        return PastedMasks(self, boxes, height, width, threshold)

    def paste_columns(self, boxes: Tensor, height: int, width: int, threshold: float) -> Iterator[PastedColumns]:
        """Paste the masks one by one.

        Args:
            boxes: (R, 4) xyxy, pixels of the image.
            height: of the image, pixels.
            width: of the image, pixels.
            threshold: as for `paste`.

        Yields:
            Of every mask, the part of the image outside which it is empty, in the form of `rle.Columns`.
        """
        paste = _paste_integer if self.paste_rule == "integer" else _paste_exact
        return paste(self.probabilities.to(boxes.dtype), boxes, (height, width), threshold)


class PastedMasks(BitMasks):
    """Bitmaps that are pasted when they are used: 100 masks of a photograph of 41 megapixels are 4 GB as bitmaps.

    It is a `BitMasks` in every respect. `window` and `to_rle` paste one instance at a time; `bits` pastes all of them
    and keeps the result.

    Args:
        masks: R masks in the frames of their boxes.
        boxes: (R, 4) xyxy, pixels of the image.
        height: of the image, pixels.
        width: of the image, pixels.
        threshold: as for `RoiMasks.paste`.
    """

    def __init__(self, masks: RoiMasks, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> None:
        vars(self).update(masks=masks, boxes=boxes, height=height, width=width, threshold=threshold)  # it is frozen

    masks: RoiMasks
    boxes: Tensor
    height: int
    width: int
    threshold: float

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        return f"PastedMasks({len(self)} masks, height={self.height}, width={self.width})"

    def __getitem__(self, index: Tensor | slice) -> PastedMasks:
        """A subset: a slice, a mask (R,) of bool, or indices (S,) of int64."""
        return PastedMasks(self.masks[index], self.boxes[index], self.height, self.width, self.threshold)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PastedMasks:
        """Move the masks and boxes to a device; arguments as for `torch.Tensor.to`."""
        masks = self.masks.to(device, non_blocking=non_blocking)
        boxes = self.boxes.to(device, non_blocking=non_blocking)
        return PastedMasks(masks, boxes, self.height, self.width, self.threshold)

    def pin_memory(self) -> PastedMasks:
        """The masks and boxes in page-locked memory, from which copies to a GPU need not be waited for."""
        masks, boxes = self.masks.pin_memory(), self.boxes.pin_memory()
        return PastedMasks(masks, boxes, self.height, self.width, self.threshold)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return self.height, self.width

    @cached_property
    def bits(self) -> Tensor:
        """(R, H, W) bool, one value per pixel of the image."""
        bits = torch.zeros(len(self), self.height, self.width, dtype=torch.bool, device=self.boxes.device)
        for plane, (columns, left, top) in zip(bits, self._columns()):
            window = columns[:, 1:-1].T
            plane[top : top + window.shape[0], left : left + window.shape[1]] = window
        return bits

    def window(self, index: int) -> tuple[Tensor, int, int]:
        """Paste one mask; argument and result as for `BitMasks.window`."""
        ((columns, left, top),) = self[index : index + 1 or None]._columns()
        return columns[:, 1:-1].T, left, top

    def to_rle(self) -> list[Rle]:
        """Convert to COCO's compressed run lengths, as `BitMasks.to_rle`; the masks are pasted on the CPU."""
        columns = (Columns(pixels.numpy(), left, top) for pixels, left, top in self.to("cpu")._columns())
        return encode_columns(columns, self.height, self.width)

    def _columns(self) -> Iterator[PastedColumns]:
        return self.masks.paste_columns(self.boxes, self.height, self.width, self.threshold)


def _paste_exact(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Iterator[PastedColumns]:
    """Sample (R, M, M) bilinearly at the pixel centres of their windows."""
    side = masks.shape[-1]
    # further than half a mask cell outside the box all weights are zero
    margin = (boxes[:, 2:] - boxes[:, :2]) / (2 * side)
    low, high = (boxes[:, :2] - margin).floor().int(), (boxes[:, 2:] + margin).ceil().int()
    windows = [_clipped(corners, size) for corners in torch.cat([low, high], dim=1).tolist()]
    for group in _groups(windows):
        columns = _bilinear_weights([windows[i][0::2] for i in group], boxes[group.start : group.stop, 0::2], side)
        rows = _bilinear_weights([windows[i][1::2] for i in group], boxes[group.start : group.stop, 1::2], side)
        for i, across, down in zip(group, columns, rows):
            x0, y0, x1, y1 = windows[i]
            pixels = torch.zeros(x1 - x0, y1 - y0 + 2, dtype=torch.bool, device=boxes.device)
            torch.ge(across @ (down @ masks[i]).T, threshold, out=pixels[:, 1:-1])
            yield pixels, x0, y0


def _paste_integer(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Iterator[PastedColumns]:
    """Add a border of one zero cell, enlarge the box accordingly, truncate it to pixels, resize the mask to it."""
    side = masks.shape[-1]
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    corners = torch.cat([centre - half, centre + half], dim=1).to(torch.int64).tolist()
    for padded, (left, top, right, bottom) in zip(F.pad(masks, (1, 1, 1, 1)), corners):
        x0, y0, x1, y1 = _clipped([left, top, right + 1, bottom + 1], size)
        pixels = torch.zeros(x1 - x0, y1 - y0 + 2, dtype=torch.bool, device=boxes.device)
        if len(pixels):
            shape = max(bottom - top + 1, 1), max(right - left + 1, 1)
            resized = F.interpolate(padded[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
            window = resized[y0 - top : y1 - top, x0 - left : x1 - left]
            torch.gt(window.T, threshold, out=pixels[:, 1:-1])
        yield pixels, x0, y0


def _clipped(corners: list[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A window of an image of some height and width: x0, y0, x1, y1; four zeros if it is empty."""
    x0, y0, x1, y1 = max(corners[0], 0), max(corners[1], 0), min(corners[2], size[1]), min(corners[3], size[0])
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else (0, 0, 0, 0)


def _groups(windows: list[tuple[int, int, int, int]]) -> Iterator[range]:
    """Ranges of consecutive windows of at most `_LINES` rows and columns together, but of at least one window."""
    start = lines = 0
    for i, (x0, y0, x1, y1) in enumerate(windows):
        lines += x1 - x0 + y1 - y0
        if lines > _LINES and i > start:
            yield range(start, i)
            start, lines = i, x1 - x0 + y1 - y0
    if start < len(windows):
        yield range(start, len(windows))


def _bilinear_weights(spans: list[tuple[int, int]], sides: Tensor, cells: int) -> tuple[Tensor, ...]:
    """Weights of the mask cells at the pixel centres of lines; zero outside the mask.

    Args:
        spans: of each of S lines, the first pixel and the one after the last.
        sides: (S, 2) where the masks begin and end, pixels.
        cells: cells of a mask along the line, M.

    Returns:
        S tensors (pixels of the line, M).
    """
    counts = [stop - start for start, stop in spans]
    pixels = np.concatenate([np.arange(start, stop) for start, stop in spans])
    owner = torch.from_numpy(np.repeat(np.arange(len(spans)), counts)).to(sides.device)
    low, high = sides[owner].unbind(1)
    position = torch.from_numpy(pixels).to(sides) + 0.5
    position = (position - low) / (high - low) * cells - 0.5
    grid = torch.arange(cells, device=sides.device, dtype=sides.dtype)
    weights = (position[:, None] - grid).abs_().neg_().add_(1).clamp_(min=0)
    return tuple(weights.tensor_split(list(itertools.accumulate(counts))[:-1]))


register_pytree_node(
    RoiMasks,
    lambda m: ([m.probabilities], m.paste_rule),
    lambda c, rule: bare(RoiMasks, probabilities=next(iter(c)), paste_rule=rule),
    serialized_type_name="heads.RoiMasks",
)
register_pytree_node(
    PastedMasks,
    lambda m: ([m.masks, m.boxes], (m.height, m.width, m.threshold)),
    lambda c, size: PastedMasks(*c, *size),
    serialized_type_name="heads.PastedMasks",
)
