"""Reading images, and the one resize that training and inference share. Pillow is imported where it is met."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .structures import ImageSize

if TYPE_CHECKING:
    from PIL import Image


class UnreadableImage(OSError):
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


def resized_size(size: ImageSize, *, short_side_px: int, long_side_px: int) -> ImageSize:
    """detectron2's `ResizeShortestEdge`: the short side becomes short_side_px, unless the long one would exceed its
    cap; halves are rounded up, and no side vanishes."""
    scale = short_side_px / min(size.height, size.width)
    scale = min(scale, long_side_px / max(size.height, size.width))
    return ImageSize(height=max(1, int(size.height * scale + 0.5)), width=max(1, int(size.width * scale + 0.5)))


def resize(image: np.ndarray, size: ImageSize) -> np.ndarray:
    """image: (H, W, 3) uint8 -> (size.height, size.width, 3) uint8: Pillow's bilinear filter, which averages when it
    shrinks (cv2's and torch's default read four pixels and alias)."""
    from PIL import Image

    if image.shape[:2] == (size.height, size.width):
        return image
    resample = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size.width, size.height), resample))
