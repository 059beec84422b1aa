"""Reading images, and the resizing that training and inference share.

Pillow and OpenCV are imported by the functions that use them.
"""

from __future__ import annotations

import os
import threading
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F

from resnet_backbone.errors import UserError
from resnet_backbone.file_kinds import HEAD_BYTES, HTML, JSON, TEXT, XML, beginning, file_kind

from .structures import ImageSize

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970  # above it Pillow takes a file for an attack
RAISE_LIMIT = (
    "shrink it, cut it into tiles, or if you trust it and have the memory, raise the limit: data.max_image_mpx of a "
    "detection run, --max-image-mpx of tools/predict.py, max_pixels of heads.images.read_image"
)
_PILLOW_LIMIT = threading.Lock()
_PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO = 262, 0  # a TIFF tag and one of its values


class UnreadableImage(UserError, OSError):
    """An image file that is missing, truncated or of another kind; the message names it."""


def read_image(path: str | PathLike[str], *, max_pixels: int | None = None) -> np.ndarray:
    """Read an image and apply its EXIF orientation. `upright_rgb` says how each kind of image becomes RGB.

    Args:
        path: the file.
        max_pixels: an image with more pixels is refused before it is decoded, because a small file can claim a size
            that exhausts the memory. None for Pillow's limit: 2 * PIL.Image.MAX_IMAGE_PIXELS, which is `MAX_PIXELS`
            unless a program changes it.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImage: the file is missing, truncated, no image or too large.
    """
    path = Path(path)
    if path.is_dir():
        raise UnreadableImage(f"no image at {path}, which is a folder: give the files in it")
    if not path.is_file():
        raise UnreadableImage(f"no image at {path}: check the folder and the file name")
    try:
        file = path.open("rb")
    except OSError as error:  # no permission, or a disk that fails
        raise UnreadableImage(f"{path} cannot be read as an image ({error}): replace or remove it") from error
    # not Image.open(path): Pillow would map the file, and maps a turned TIFF with the sides swapped
    with file:
        return decode_image(file, path, max_pixels=max_pixels)


def decode_image(file: BinaryIO, name: object, *, max_pixels: int | None = None) -> np.ndarray:
    """Read an image from an open file, such as a member of a zip archive; see `read_image`.

    Plain JPEG files are decoded by simplejpeg if it is installed, about 1.3 times as fast as by Pillow and with the
    same pixels (`heads.jpeg`); all others, and all errors, are Pillow's.

    Args:
        file: open for reading, and seekable.
        name: what errors call it.
        max_pixels: as for `read_image`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImage: the file is truncated, no image or too large.
    """
    from PIL import Image

    from .jpeg import decode_plain_jpeg

    try:
        with open_image(file, max_pixels) as image:
            pixels = decode_plain_jpeg(image, file)
            return upright_rgb(image) if pixels is None else pixels
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{name} is too large ({error}): {RAISE_LIMIT}") from error
    except Exception as error:  # for damaged files, Pillow's codecs raise errors of any type
        what, fix = _problem(file, error)
        raise UnreadableImage(f"{name} cannot be read as an image ({what}): {fix}") from error


def open_image(file: BinaryIO, max_pixels: int | None = None) -> Image.Image:
    """Open an image with a limit on its size. The pixels are not decoded.

    Args:
        file: open for reading, and seekable.
        max_pixels: as for `read_image`.

    Returns:
        A Pillow image.

    Raises:
        PIL.Image.DecompressionBombError: the image has more pixels.
        OSError: the file is no image, or another error of Pillow's codecs.
    """
    from PIL import Image

    if max_pixels is None:
        return Image.open(file)
    # Pillow has one limit for the whole process, checked while it reads the header
    with _PILLOW_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if image.width * image.height > max_pixels:
        raise Image.DecompressionBombError(
            f"Image size ({image.width * image.height} pixels) exceeds limit of {max_pixels} pixels"
        )
    return image


def _problem(file: BinaryIO, error: Exception) -> tuple[str, str]:
    """What keeps a file from being read, and what to do."""
    from PIL import UnidentifiedImageError

    fix, reason = "replace or remove it", str(error) or type(error).__name__
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEAD_BYTES)
    except (OSError, ValueError):  # the error itself: a disk that fails
        return reason, fix
    kind = file_kind(head)
    if kind is not None and kind.is_image:
        return f"it begins as {kind.what} but is incomplete, damaged or unusual; {size:,} bytes; {reason}", fix
    if kind is None or not isinstance(error, UnidentifiedImageError):
        return reason, fix
    begins = f" which begins {beginning(head)}" if kind in (HTML, XML, JSON, TEXT) else ""
    return f"it is {kind.what}{begins}", kind.fix or fix


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image to upright RGB of 8 bits.

    - The EXIF orientation is applied.
    - Of several pages or frames, the current one is taken; in an image just opened, the first.
    - Greyscale of more than 8 bits (16-bit, 32-bit, float) is scaled to 0..255 between the smallest and the largest
      value of this image, as most viewers do, and rounded. Sensors often fill 10 or 12 of 16 bits, which the full
      range of the type would turn black. An image of one value becomes black. A TIFF whose photometric interpretation
      is "white is zero" is inverted.
    - Colour of 16 bits per channel keeps its upper 8 bits, as Pillow reads it.
    - Transparency is ignored: pixels have the colour that is stored under it.

    Args:
        image: a Pillow image of any mode.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UnreadableImage: float values that are not finite, or a mode that Pillow cannot convert.
    """
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        levels = scaled_to_8_bits(np.asarray(upright))
        if image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
            levels = 255 - levels
        return np.repeat(levels[:, :, None], 3, axis=2)
    try:
        return np.asarray(upright.convert("RGB"))
    except ValueError as error:
        raise UnreadableImage(f"an image of mode {image.mode} is not read ({error}): save it as RGB") from error


def scaled_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale values to 0..255, linearly between the smallest and the largest one.

    Args:
        values: any shape, integers or floats.

    Returns:
        uint8 of the same shape; 0 everywhere if all values are the same.

    Raises:
        UnreadableImage: values that are not finite.
    """
    if values.size == 0:
        return values.astype(np.uint8)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max of values with NaN are NaN
        count = int((~np.isfinite(values)).sum())
        raise UnreadableImage(f"{count:,} of {values.size:,} values are NaN or infinite: replace them by finite values")
    scaled = values.astype(np.float64)
    scaled -= low
    scaled *= 255 / (high - low) if high > low else 0
    return np.rint(scaled, out=scaled).astype(np.uint8)


def resized_size(size: ImageSize, *, short_side_px: int, long_side_px: int, how: str = "pillow") -> ImageSize:
    """Compute the size of a resized image, as detectron2's `ResizeShortestEdge`.

    Args:
        size: the image.
        short_side_px: pixels of the short side after resizing, unless the long side would exceed its limit.
        long_side_px: most pixels of the long side after resizing.
        how: "pillow" and "opencv" round to the nearest pixel, halves up; "torch" rounds down, as torchvision.

    Returns:
        The new size; every side has at least one pixel.
    """
    scale = short_side_px / min(size.height, size.width)
    scale = min(scale, long_side_px / max(size.height, size.width))
    rounding = 0.0 if how == "torch" else 0.5
    height, width = (max(1, int(side * scale + rounding)) for side in (size.height, size.width))
    return ImageSize(height=height, width=width)


def resize(image: np.ndarray, size: ImageSize, *, how: str = "pillow", precise: bool = False) -> np.ndarray:
    """Resize an image with one of the bilinear filters of `Preprocess.resize`.

    Args:
        image: (H, W, 3) uint8.
        size: the new size.
        how: "pillow" averages over the source pixels when it shrinks (it enlarges by OpenCV if that is installed, with
            the same pixels: `heads.enlarge`); "opencv" and "torch" interpolate between four
            pixels, and "torch" does not round.
        precise: compute in float64; for "torch".

    Returns:
        (size.height, size.width, 3), uint8; for "torch" float32, or float64 if precise.
    """
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

    from .enlarge import enlarge

    if (enlarged := enlarge(image, size)) is not None:
        return enlarged
    resample = Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size.width, size.height), resample))
