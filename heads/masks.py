"""Masks: ground truth as polygons or bitmaps behind one call, the mask head's output, pasting, and COCO's RLE.

Glossary: R instances, V vertices, M side of a mask head's output (28), H x W the image.
pycocotools is imported where polygons or RLE are met, and nowhere else.
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

Rle = dict[str, Any]  # {"size": [H, W], "counts": str}


@dataclass(frozen=True)
class PolygonMasks:
    """R instances, each a list of polygons (V, 2) x y in pixels, float64 on the CPU: 28x28 targets are drawn
    straight from the vertices, and the image itself is never rasterised."""

    polygons: tuple[tuple[np.ndarray, ...], ...]

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, index: Tensor | slice) -> PolygonMasks:
        if isinstance(index, slice):
            return PolygonMasks(self.polygons[index])
        rows = index.nonzero().flatten() if index.dtype == torch.bool else index
        return PolygonMasks(tuple(self.polygons[i] for i in rows.tolist()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PolygonMasks:
        return self

    def scaled(self, x: float, y: float) -> PolygonMasks:
        """The outlines in an image that is x times as wide and y times as high."""
        factor = np.array([x, y])
        return PolygonMasks(tuple(tuple(polygon * factor for polygon in polygons) for polygons in self.polygons))

    def rasterise(self, height: int, width: int) -> BitMasks:
        """The whole outlines as bitmaps of an image, by pycocotools' rasteriser."""
        planes = [decode_segmentation([p.reshape(-1).tolist() for p in ps], height, width) for ps in self.polygons]
        return BitMasks(torch.from_numpy(np.stack(planes) if planes else np.zeros((0, height, width), dtype=bool)))

    def crop_to(self, boxes: Tensor, size: int, *, soft_bitmaps: bool = False) -> Tensor:
        """boxes: (R, 4), one an instance -> (R, size, size) bool on the boxes' device: each mask seen through its box.

        soft_bitmaps is for `BitMasks`: outlines have no pixels to average. Matches detectron2's
        `rasterize_polygons_within_box`: vertices shifted and scaled in float64, then pycocotools' rasteriser. A side
        below 0.1 px is taken as 0.1.
        """
        from pycocotools import mask as coco

        out = np.zeros((len(self), size, size), dtype=bool)
        for row, polygons, box in zip(out, self.polygons, boxes.detach().cpu().double().numpy()):
            scale = size / np.maximum(box[2:] - box[:2], 0.1)
            seen = [((polygon - box[:2]) * scale).reshape(-1).tolist() for polygon in polygons]
            row[:] = coco.decode(coco.merge(coco.frPyObjects(seen, size, size))).astype(bool)
        return torch.from_numpy(out).to(boxes.device)


@dataclass(frozen=True)
class BitMasks:
    """R instances as bitmaps (R, H, W) bool in the image's pixels."""

    bits: Tensor

    def __post_init__(self) -> None:
        if self.bits.ndim != 3 or self.bits.dtype != torch.bool:
            raise InvalidValue(f"BitMasks wants (R, H, W) bool, got {tuple(self.bits.shape)} {self.bits.dtype}")

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: Tensor | slice) -> BitMasks:
        return BitMasks(self.bits[index])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BitMasks:
        return BitMasks(self.bits.to(device, non_blocking=non_blocking))

    def crop_to(self, boxes: Tensor, size: int, *, soft_bitmaps: bool = False) -> Tensor:
        """boxes: (R, 4), one an instance -> (R, size, size) bool: aligned RoIAlign of the bitmap, cut at one half
        (detectron2's `BitMasks.crop_and_resize`, mmdetection's `BitmapMasks`). With soft_bitmaps the boxes' dtype:
        RoIAlign without the half-pixel shift, as fractions (torchvision's `project_masks_on_boxes`)."""
        if len(self) == 0:
            return boxes.new_zeros((0, size, size), dtype=boxes.dtype if soft_bitmaps else torch.bool)
        index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
        regions = torch.cat([index[:, None], boxes], dim=1)
        bits = self.bits.to(device=boxes.device, dtype=boxes.dtype)[:, None]
        seen = roi_align(bits, regions, size, 1.0, 0, aligned=not soft_bitmaps)[:, 0]
        return seen if soft_bitmaps else seen >= 0.5

    def to_rle(self) -> list[Rle]:
        """COCO's compressed run lengths, one an instance, `counts` as text (JSON holds no bytes)."""
        from pycocotools import mask as coco

        # pycocotools reads columns first: (H, W, R) in Fortran order
        planes = np.asfortranarray(self.bits.cpu().numpy().transpose(1, 2, 0).astype(np.uint8))
        rles = coco.encode(planes) if len(self) else []
        return [{"size": [int(s) for s in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in rles]


@dataclass(frozen=True)
class RoiMasks:
    """What the mask head says: probabilities (R, M, M), each in the frame of its box; how they are pasted travels
    with them (`Conventions.mask_paste`)."""

    probabilities: Tensor
    paste_rule: Literal["exact", "integer"] = "exact"

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getitem__(self, index: Tensor | slice) -> RoiMasks:
        return RoiMasks(self.probabilities[index], self.paste_rule)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RoiMasks:
        return RoiMasks(self.probabilities.to(device, non_blocking=non_blocking), self.paste_rule)

    def paste(self, boxes: Tensor, height: int, width: int, *, threshold: float = 0.5) -> BitMasks:
        """boxes: (R, 4) in pixels of an image of height x width -> its bitmaps, bilinearly sampled at pixel centres.

        The values of detectron2's `paste_masks_in_image`, computed only in the window of each box: bilinear weights
        are separable, so a window is two small matrix products instead of a grid sample. With the rule "integer",
        those of torchvision's function of the same name, cut above the threshold.
        """
        if self.paste_rule == "integer":
            return self._paste_integer(boxes, height, width, threshold)
        bits = torch.zeros(len(self), height, width, dtype=torch.bool, device=boxes.device)
        side = self.probabilities.shape[-1]
        masks = self.probabilities.to(boxes.dtype)
        for plane, mask, box in zip(bits, masks, boxes):
            # beyond half a mask cell outside the box every weight is zero
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
        """A border of one zero cell, the box grown by it and cut to whole pixels, the mask resized to that many."""
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
            whole = F.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            plane[y0:y1, x0:x1] = whole[y0 - top : y1 - top, x0 - left : x1 - left] > threshold
        return BitMasks(bits)


def _bilinear_weights(start: int, stop: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(stop - start, cells): how much each mask cell counts at each pixel centre of a line; zero outside the mask."""
    centres = torch.arange(start, stop, device=low.device, dtype=low.dtype) + 0.5
    position = (centres - low) / (high - low) * cells - 0.5
    grid = torch.arange(cells, device=low.device, dtype=low.dtype)
    return (1 - (position[:, None] - grid).abs()).clamp(min=0)


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """COCO's `segmentation` (polygons, uncompressed or compressed RLE) -> (height, width) bool.

    Raises ValueError for anything else, naming what came.
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        return coco.decode(coco.frPyObjects(segmentation, height, width)).astype(bool)
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return coco.decode(segmentation).astype(bool)
    if isinstance(segmentation, list) and segmentation:
        return coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width))).astype(bool)
    raise InvalidValue(f"segmentation must be polygons or RLE, got {str(segmentation)[:60]}")


def polygons_from(segmentation: Iterable[Sequence[float]]) -> tuple[np.ndarray, ...]:
    """COCO's flat polygons -> tuple of (V, 2) float64. Raises ValueError for fewer than three vertices."""
    polygons = []
    for flat in segmentation:
        if len(flat) < 6 or len(flat) % 2:
            raise InvalidValue(f"a polygon needs at least three x y pairs, got {len(flat)} numbers")
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
    """An instance without its checks: pytrees also carry placeholders."""
    instance: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    return instance
