"""Masks in the frames of their boxes, as the mask head gives them, and how they are pasted into the image.

R instances, M the side of a mask head's output in cells (28), H and W the image in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from .masks import BitMasks, bare


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

    def paste_window(
        self, index: int, box: Tensor, height: int, width: int, threshold: float
    ) -> tuple[Tensor, int, int]:
        """Paste one mask.

        Args:
            index: of the instance.
            box: (4,) xyxy, pixels of the image.
            height: of the image, pixels.
            width: of the image, pixels.
            threshold: as for `paste`.

        Returns:
            The pixels of the part of the image outside which the mask is empty, (h, w) bool, and the column and row
            where they begin.
        """
        mask = self.probabilities[index].to(box.dtype)
        if self.paste_rule == "integer":
            return _paste_integer(mask, box, height, width, threshold)
        side = mask.shape[-1]
        # further than half a mask cell outside the box all weights are zero
        margin = (box[2:] - box[:2]) / (2 * side)
        low = (box[:2] - margin).floor().int().tolist()
        high = (box[2:] + margin).ceil().int().tolist()
        x0, y0, x1, y1 = max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height)
        if x1 <= x0 or y1 <= y0:
            return _empty(box)
        rows = _bilinear_weights(y0, y1, box[1], box[3], side)
        columns = _bilinear_weights(x0, x1, box[0], box[2], side)
        return rows @ mask @ columns.T >= threshold, x0, y0


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
        for index, plane in enumerate(bits):
            window, left, top = self.window(index)
            plane[top : top + window.shape[0], left : left + window.shape[1]] = window
        return bits

    def window(self, index: int) -> tuple[Tensor, int, int]:
        """Paste one mask; argument and result as for `BitMasks.window`."""
        return self.masks.paste_window(index, self.boxes[index], self.height, self.width, self.threshold)


def _paste_integer(mask: Tensor, box: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, int, int]:
    """Add a border of one zero cell, enlarge the box accordingly, truncate it to pixels, resize the mask to it."""
    side = mask.shape[-1]
    half = (box[2:] - box[:2]) * 0.5 * ((side + 2) / side)
    centre = (box[2:] + box[:2]) * 0.5
    left, top, right, bottom = torch.cat([centre - half, centre + half]).to(torch.int64).tolist()
    size = max(bottom - top + 1, 1), max(right - left + 1, 1)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)
    if x1 <= x0 or y1 <= y0:
        return _empty(box)
    padded = F.pad(mask, (1, 1, 1, 1))[None, None]
    resized = F.interpolate(padded, size=size, mode="bilinear", align_corners=False)[0, 0]
    return resized[y0 - top : y1 - top, x0 - left : x1 - left] > threshold, x0, y0


def _empty(box: Tensor) -> tuple[Tensor, int, int]:
    return torch.zeros(0, 0, dtype=torch.bool, device=box.device), 0, 0


def _bilinear_weights(start: int, stop: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(stop - start, cells): weights of the mask cells at the pixel centres of a line; zero outside the mask."""
    centres = torch.arange(start, stop, device=low.device, dtype=low.dtype) + 0.5
    position = (centres - low) / (high - low) * cells - 0.5
    grid = torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - (position[:, None] - grid).abs()).clamp(min=0)


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
