"""Masks as polygons or bitmaps, and COCO's RLE; `roi_masks` has those of the mask head.

R instances, V vertices of a polygon, H and W the image in pixels.
pycocotools is imported by the functions that use it, for polygons and RLE.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from resnet_backbone.errors import InvalidValue

from .kernels import roi_align_operator
from .rle import Rle, columns_of, encode_columns
from .transfer import send


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

    def pin_memory(self) -> PolygonMasks:
        """The masks themselves: polygons are not copied to a device."""
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
            cropped = [_within_reach((polygon - box[:2]) * scale, size) for polygon in polygons]
            flat = [polygon.reshape(-1).tolist() for polygon in cropped if len(polygon)]
            if flat:
                row[:] = coco.decode(coco.merge(coco.frPyObjects(flat, size, size))).astype(bool)
        return send(torch.from_numpy(out), boxes.device)


# pycocotools draws every step of an outline, also outside the window: an outline that is far larger than its box, which
# only contradictory annotations have, would fill the memory
_MAX_REACH = 1000


def _within_reach(polygon: np.ndarray, size: int) -> np.ndarray:
    """Clip a polygon that reaches far beyond a window; any other one is returned as it is.

    Args:
        polygon: (V, 2) x y, in cells of the window.
        size: side of the window, in cells.

    Returns:
        The polygon, (W, 2); inside the window it covers the same area. Source of the clipping: Sutherland and Hodgman,
        *Reentrant Polygon Clipping* (1974).
    """
    if np.abs(polygon).max(initial=0) <= _MAX_REACH * size:
        return polygon
    for axis, bound, sign in ((0, -size, 1), (0, 2 * size, -1), (1, -size, 1), (1, 2 * size, -1)):
        if not len(polygon):
            break
        following = np.roll(polygon, -1, axis=0)
        here, there = sign * (polygon[:, axis] - bound), sign * (following[:, axis] - bound)
        kept = []
        for point, after, a, b in zip(polygon, following, here, there):
            if a >= 0:
                kept.append(point)
            if (a >= 0) != (b >= 0):
                kept.append(point + (after - point) * (a / (a - b)))
        polygon = np.array(kept).reshape(-1, 2)
    return polygon


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

    def pin_memory(self) -> BitMasks:
        """The bitmaps in page-locked memory, from which copies to a GPU need not be waited for."""
        return BitMasks(self.bits.pin_memory())

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return self.bits.shape[1], self.bits.shape[2]

    def window(self, index: int) -> tuple[Tensor, int, int]:
        """The part of a mask outside which it is empty.

        Args:
            index: of the instance.

        Returns:
            Its pixels (h, w) bool, and the column and row where they begin in the image.
        """
        return self.bits[index], 0, 0

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
        aligned = not soft_bitmaps
        fractions = roi_align_operator(bits, regions, size=size, scale=1.0, samples=0, aligned=aligned)[:, 0]
        return fractions if soft_bitmaps else fractions >= 0.5

    def to_rle(self) -> list[Rle]:
        """Convert to COCO's compressed run lengths.

        Returns:
            One per instance, with `counts` as text, because JSON does not hold bytes.
        """
        # one by one: all planes of a large photograph do not fit in memory
        columns = (columns_of(bits.cpu().numpy(), 0, 0) for bits in self.bits)
        return encode_columns(columns, *self.image_size)


def crop_all(
    masks: Sequence[PolygonMasks | BitMasks],
    indices: Sequence[Tensor],
    boxes: Sequence[Tensor],
    size: int,
    *,
    soft_bitmaps: bool = False,
) -> Tensor:
    """Crop masks of N images to boxes. Polygons are drawn on the host, for which a GPU is waited for once.

    Args:
        masks: N containers.
        indices: N of (R,) int64, the mask of each box.
        boxes: N of (R, 4) xyxy, pixels.
        size: side of the result, in cells.
        soft_bitmaps: as for `BitMasks.crop_to`.

    Returns:
        (sum of R, size, size) on the device of the boxes: bool, or with soft_bitmaps the precision of the boxes if one
        of the containers has bitmaps.
    """
    device = boxes[0].device
    hosts: Sequence[tuple[Tensor, Tensor]] = list(zip(indices, boxes))
    if device.type != "cpu" and any(isinstance(of_image, PolygonMasks) for of_image in masks):
        # float64 holds both exactly
        table = torch.cat([torch.cat([i[:, None].double(), b.double()], dim=1) for i, b in hosts]).cpu()
        hosts = [(rows[:, 0].long(), rows[:, 1:]) for rows in torch.split(table, [len(i) for i in indices])]
    crops = []
    for of_image, here, there in zip(masks, zip(indices, boxes), hosts):
        index, box = there if isinstance(of_image, PolygonMasks) else here
        crops.append(send(of_image[index].crop_to(box, size, soft_bitmaps=soft_bitmaps), device))
    return torch.cat(crops)


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
    lambda c, _: bare(BitMasks, bits=next(iter(c))),
    serialized_type_name="heads.BitMasks",
)
register_pytree_node(
    PolygonMasks,
    lambda m: ([], m.polygons),
    lambda _, polygons: PolygonMasks(polygons),
    serialized_type_name="heads.PolygonMasks",
)


def bare(cls: type, **values: Any) -> Any:
    """An instance without its checks, because pytrees also hold placeholders."""
    instance: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance
