"""Row of post-processing: the masks of 100 detections as run lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heads.roi_masks import RoiMasks

from .contenders import Comparison, Contender, as_work
from .setting import Setting

TORCHVISION = "torchvision's paste, pycocotools"
SIZES = ((480, 640), (4000, 3000))
Rles = list[dict[str, Any]]


def given_masks(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Masks of wavy blobs, and boxes of a few pixels to most of the image.

    Args:
        count: R, number of masks.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        (R, 28, 28) probabilities, and (R, 4) xyxy.
    """
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    phase = 6 * torch.rand(count, 1, 1, generator=generator)
    edge = 0.75 + 0.2 * torch.cos(3 * torch.atan2(y, x)[None] + phase)
    noise = 0.3 * torch.randn(count, 28, 28, generator=generator)
    probabilities = torch.sigmoid(8 * (edge - torch.hypot(x, y)[None]) + noise)
    extent = torch.tensor([width, height], dtype=torch.float32)
    sides = torch.exp(3 * torch.rand(count, 2, generator=generator) - 3.2) * min(height, width)
    centres = torch.rand(count, 2, generator=generator) * extent
    boxes = torch.cat([(centres - sides / 2).clamp(min=0), torch.minimum(centres + sides / 2, extent)], dim=1)
    return probabilities, boxes


def our_rles(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> Rles:
    """Run lengths of pasted masks, with torchvision's rule of pasting.

    Args:
        probabilities: (R, 28, 28).
        boxes: (R, 4) xyxy, pixels.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        R of COCO's run lengths.
    """
    return list(RoiMasks(probabilities, "integer").paste(boxes, height, width).to_rle())


def their_rles(probabilities: Tensor, boxes: Tensor, height: int, width: int) -> Rles:
    """The same by torchvision and pycocotools; arguments and result as for `our_rles`."""
    from pycocotools import mask as coco_mask  # not at the top: `--help` does not need them
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    pasted = paste_masks_in_image(probabilities[:, None], boxes, (height, width))
    found = [coco_mask.encode(np.asfortranarray((mask[0] > 0.5).numpy().astype(np.uint8))) for mask in pasted]
    return [rle | {"counts": rle["counts"].decode()} for rle in found]


def masks_comparison(row: str, count: int, height: int, width: int, x: tuple[float, str] | None = None) -> Comparison:
    """Compare both on some masks.

    Args:
        row: name of the row.
        count: number of masks.
        height: of the image, pixels.
        width: of the image, pixels.
        x: place in a growth plot.

    Returns:
        The comparison.
    """
    given = *given_masks(count, height, width), height, width
    equal = our_rles(*given) == their_rles(*given)
    return Comparison(
        row,
        f"masks of {count} detections to RLE, {height}x{width} px",
        [
            Contender(TORCHVISION, as_work(their_rles, *given)),
            Contender("RoiMasks.paste().to_rle()", as_work(our_rles, *given), ours=True),
        ],
        reference=TORCHVISION,
        items=(count, "masks"),
        equal=["run lengths equal bit for bit" if equal else "run lengths differ"],
        x=x,
        max_repeats=3 if height > 1000 else None,
        warm_up=False,  # the check above was one
    )


def masks(setting: Setting) -> Iterator[Comparison]:
    """Masks of 100 detections to RLE, at 480x640 and 4000x3000 px.

    Args:
        setting: how to run.

    Yields:
        Two comparisons.
    """
    for height, width in ((48, 64),) if setting.quick else SIZES:
        yield masks_comparison("masks", 10 if setting.quick else 100, height, width)
