"""Reading images, and the one resize that training and inference share. Pillow and OpenCV are imported where they are
met."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from resnet_backbone.errors import UserError

from .structures import ImageSize

if TYPE_CHECKING:
    from PIL import Image


class UnreadableImage(UserError, OSError):
    """A file that is missing, cut off or no image; the message names it."""


def read_image(path: str | PathLike[str]) -> np.ndarray:
    """A file -> (H, W, 3) uint8 RGB, turned upright by its EXIF orientation. Raises `UnreadableImage`."""
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise UnreadableImage(f"no image at {path}: check the folder and the file name")
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path} cannot be read as an image ({error}): replace or remove it") from error


def upright_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image -> (H, W, 3) uint8 RGB, turned upright by its EXIF orientation."""
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def resized_size(size: ImageSize, *, short_side_px: int, long_side_px: int, how: str = "pillow") -> ImageSize:
    """detectron2's `ResizeShortestEdge`: the short side becomes short_side_px, unless the long one would exceed its
    cap; halves are rounded up, and no side vanishes. how "torch" is torchvision's rule: fractions are cut
    off."""
    scale = short_side_px / min(size.height, size.width)
    scale = min(scale, long_side_px / max(size.height, size.width))
    rounding = 0.0 if how == "torch" else 0.5
    height, width = (max(1, int(side * scale + rounding)) for side in (size.height, size.width))
    return ImageSize(height=height, width=width)


def resize(image: np.ndarray, size: ImageSize, *, how: str = "pillow", precise: bool = False) -> np.ndarray:
    """image: (H, W, 3) uint8 -> (size.height, size.width, 3) uint8, as `Preprocess.resize` says: "pillow" is its
    bilinear filter, which averages when it shrinks; "opencv" and "torch" read four pixels and alias, and "torch" gives
    float32 that is not rounded (float64 where precise)."""
    if how == "torch":
        planes = torch.tensor(image).permute(2, 0, 1)[None].to(torch.float64 if precise else torch.float32)
        shape = (size.height, size.width)
        return F.interpolate(planes, size=shape, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    if image.shape[:2] == (size.height, size.width):
        return image
    if how == "opencv":
        import cv2

        return cv2.resize(image, (size.width, size.height), interpolation=cv2.INTER_LINEAR)
    from PIL import Image

    resample = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size.width, size.height), resample))
