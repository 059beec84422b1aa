"""Masks: ground truth as polygons or bitmaps, the output of the mask head and how it is pasted, COCO's RLE.

R instances, V vertices of a polygon, M the side of a mask head's output in cells (28), H and W the image in pixels.
pycocotools is imported by the functions that use it, for polygons and RLE.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import register_pytree_node
from torchvision.ops import roi_align

from resnet_backbone.errors import InvalidValue

Rle = dict[str, Any]  # COCO's run lengths: {"size": [H, W], "counts": str}


@dataclass(frozen=True)
class PolygonMasks:
    """R instances as polygons. Targets for the mask head are drawn from the vertices, not from bitmaps of the image.

    Attributes:
        polygons: per instance, its polygons (V, 2) x y, pixels, float64 on the CPU.
    """

    polygons: tuple[tuple[np.ndarray, ...], ...]

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, index: Tensor | slice) -> PolygonMasks:
        """A subset: a slice, a mask (R,) of bool, or indices (S,) of int64."""
        if isinstance(index, slice):
            return PolygonMasks(self.polygons[index])
        rows = index.nonzero().flatten() if index.dtype == torch.bool else index
        return PolygonMasks(tuple(self.polygons[i] for i in rows.tolist()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PolygonMasks:
        """The masks themselves: polygons stay on the CPU."""
        return self

    def scaled(self, x: float, y: float) -> PolygonMasks:
        """Scale the polygons with their image.

        Args:
            x: new width of the image divided by the old one.
            y: new height of the image divided by the old one.

        Returns:
            The scaled masks.
        """
        factor = np.array([x, y])
        return PolygonMasks(tuple(tuple(polygon * factor for polygon in polygons) for polygons in self.polygons))

    def rasterise(self, height: int, width: int) -> BitMasks:
        """Draw the polygons with pycocotools' rasteriser.

        Args:
            height: of the image, pixels.
            width: of the image, pixels.

        Returns:
            (R, height, width) bitmaps.
        """
        planes = [decode_segmentation([p.reshape(-1).tolist() for p in ps], height, width) for ps in self.polygons]
        return BitMasks(torch.from_numpy(np.stack(planes) if planes else np.zeros((0, height, width), dtype=bool)))

    def crop_to(self, boxes: Tensor, size: int, *, soft_bitmaps: bool = False) -> Tensor:
        """Draw every mask in the frame of its box.

        Matches detectron2's `rasterize_polygons_within_box`: the vertices are shifted and scaled in float64 and drawn
        with pycocotools' rasteriser. Sides of boxes below 0.1 px count as 0.1 px.

        Args:
            boxes: (R, 4) xyxy, pixels, one per instance.
            size: side of the result, in cells.
            soft_bitmaps: not used; `BitMasks` has the same signature.

        Returns:
            (R, size, size) bool, on the device of the boxes.
        """
        from pycocotools import mask as coco

        out = np.zeros((len(self), size, size), dtype=bool)
        for row, polygons, box in zip(out, self.polygons, boxes.detach().cpu().double().numpy()):
            scale = size / np.maximum(box[2:] - box[:2], 0.1)
            cropped = [((polygon - box[:2]) * scale).reshape(-1).tolist() for polygon in polygons]
            row[:] = coco.decode(coco.merge(coco.frPyObjects(cropped, size, size))).astype(bool)
        return torch.from_numpy(out).to(boxes.device)


@dataclass(frozen=True)
class BitMasks:
    """R instances as bitmaps.

    Attributes:
        bits: (R, H, W) bool, one value per pixel of the image.

    Raises:
        InvalidValue: another shape or dtype.
    """

    bits: Tensor

    def __post_init__(self) -> None:
        if self.bits.ndim != 3 or self.bits.dtype != torch.bool:
            raise InvalidValue(f"BitMasks takes (R, H, W) bool, got {tuple(self.bits.shape)} {self.bits.dtype}")

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: Tensor | slice) -> BitMasks:
        """A subset: a slice, a mask (R,) of bool, or indices (S,) of int64."""
        return BitMasks(self.bits[index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BitMasks:
        """Move the bitmaps to a device; arguments as for `torch.Tensor.to`."""
        return BitMasks(self.bits.to(device, non_blocking=non_blocking))

    def crop_to(self, boxes: Tensor, size: int, *, soft_bitmaps: bool = False) -> Tensor:
        """Resample every mask in the frame of its box.

        Args:
            boxes: (R, 4) xyxy, pixels, one per instance.
            size: side of the result, in cells.
            soft_bitmaps: False, aligned RoIAlign with a threshold of 0.5 (detectron2's `BitMasks.crop_and_resize`,
                mmdetection's `BitmapMasks`); True, fractions of RoIAlign without the half-pixel shift (torchvision's
                `project_masks_on_boxes`).

        Returns:
            (R, size, size) on the device of the boxes: bool, or with soft_bitmaps the precision of the boxes.
        """
        if len(self) == 0:
            return boxes.new_zeros((0, size, size), dtype=boxes.dtype if soft_bitmaps else torch.bool)
        index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
        regions = torch.cat([index[:, None], boxes], dim=1)
        bits = self.bits.to(device=boxes.device, dtype=boxes.dtype)[:, None]
        fractions: Tensor = roi_align(bits, regions, size, 1.0, 0, aligned=not soft_bitmaps)[:, 0]
        return fractions if soft_bitmaps else fractions >= 0.5

    def to_rle(self) -> list[Rle]:
        """Convert to COCO's compressed run lengths.

        Returns:
            One per instance, with `counts` as text, because JSON does not hold bytes.
        """
        from pycocotools import mask as coco

        # pycocotools reads (H, W, R) in Fortran order
        planes = np.asfortranarray(self.bits.cpu().numpy().transpose(1, 2, 0).astype(np.uint8))
        rles = coco.encode(planes) if len(self) else []
        return [{"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in rles]


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

    def paste(self, boxes: Tensor, height: int, width: int, *, threshold: float = 0.5) -> BitMasks:
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
            (R, height, width) bitmaps.
        """
        if self.paste_rule == "integer":
            return self._paste_integer(boxes, height, width, threshold)
        bits = torch.zeros(len(self), height, width, dtype=torch.bool, device=boxes.device)
        side = self.probabilities.shape[-1]
        masks = self.probabilities.to(boxes.dtype)
        for plane, mask, box in zip(bits, masks, boxes):
            # further than half a mask cell outside the box all weights are zero
            margin = (box[2:] - box[:2]) / (2 * side)
            low = (box[:2] - margin).floor().int().tolist()
            high = (box[2:] + margin).ceil().int().tolist()
            x0, y0, x1, y1 = max(low[0], 0), max(low[1], 0), min(high[0], width), min(high[1], height)
            if x1 <= x0 or y1 <= y0:
                continue
            rows = _bilinear_weights(y0, y1, box[1], box[3], side)
            columns = _bilinear_weights(x0, x1, box[0], box[2], side)
            plane[y0:y1, x0:x1] = rows @ mask @ columns.T >= threshold
        return BitMasks(bits)

    def _paste_integer(self, boxes: Tensor, height: int, width: int, threshold: float) -> BitMasks:
        """Add a border of one zero cell, enlarge the box accordingly, truncate it to pixels, resize the mask to it."""
        bits = torch.zeros(len(self), height, width, dtype=torch.bool, device=boxes.device)
        side = self.probabilities.shape[-1]
        masks = F.pad(self.probabilities.to(boxes.dtype), (1, 1, 1, 1))
        half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
        centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
        corners = torch.cat([centre - half, centre + half], dim=1).to(torch.int64).tolist()
        for plane, mask, (left, top, right, bottom) in zip(bits, masks, corners):
            size = max(bottom - top + 1, 1), max(right - left + 1, 1)
            x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)
            if x1 <= x0 or y1 <= y0:
                continue
            resized = F.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            plane[y0:y1, x0:x1] = resized[y0 - top : y1 - top, x0 - left : x1 - left] > threshold
        return BitMasks(bits)


def _bilinear_weights(start: int, stop: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(stop - start, cells): weights of the mask cells at the pixel centres of a line; zero outside the mask."""
    centres = torch.arange(start, stop, device=low.device, dtype=low.dtype) + 0.5
    position = (centres - low) / (high - low) * cells - 0.5
    grid = torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - (position[:, None] - grid).abs()).clamp(min=0)


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode COCO's `segmentation`.

    Args:
        segmentation: a list of flat polygons, or a dict of uncompressed or compressed run lengths.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        (height, width) bool.

    Raises:
        InvalidValue: anything else.
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        rle = coco.frPyObjects(segmentation, height, width)
    elif isinstance(segmentation, dict) and "counts" in segmentation:
        rle = segmentation
    elif isinstance(segmentation, list) and segmentation:
        rle = coco.merge(coco.frPyObjects(segmentation, height, width))
    else:
        raise InvalidValue(f"segmentation must be polygons or RLE, got {str(segmentation)[:60]}")
    bits: np.ndarray = coco.decode(rle).astype(bool)
    return bits


def polygons_from(segmentation: Iterable[Sequence[float]]) -> tuple[np.ndarray, ...]:
    """Convert COCO's flat polygons to arrays.

    Args:
        segmentation: polygons x1, y1, x2, y2, ..., pixels.

    Returns:
        Polygons (V, 2), float64.

    Raises:
        InvalidValue: a polygon with fewer than three vertices, or an odd number of values.
    """
    polygons = []
    for flat in segmentation:
        if len(flat) < 6 or len(flat) % 2:
            raise InvalidValue(
                f"a polygon needs at least three x y pairs, got {len(flat)} numbers: correct or remove it"
            )
        polygons.append(np.asarray(flat, dtype=np.float64).reshape(-1, 2))
    return tuple(polygons)


register_pytree_node(
    BitMasks,
    lambda m: ([m.bits], None),
    lambda c, _: _bare(BitMasks, bits=next(iter(c))),
    serialized_type_name="heads.BitMasks",
)
register_pytree_node(
    RoiMasks,
    lambda m: ([m.probabilities], m.paste_rule),
    lambda c, rule: _bare(RoiMasks, probabilities=next(iter(c)), paste_rule=rule),
    serialized_type_name="heads.RoiMasks",
)
register_pytree_node(
    PolygonMasks,
    lambda m: ([], m.polygons),
    lambda _, polygons: PolygonMasks(polygons),
    serialized_type_name="heads.PolygonMasks",
)


def _bare(cls: type, **values: Any) -> Any:
    """An instance without its checks, because pytrees also hold placeholders."""
    instance: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance
