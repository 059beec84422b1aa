"""Decoding plain JPEG files with simplejpeg (libjpeg-turbo), where that gives the same pixels as Pillow.

simplejpeg is optional. Whatever it does not decode without a warning is left to Pillow, which then reads or refuses it.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

Decoder = Callable[[bytes], np.ndarray]


def decode_plain_jpeg(image: Image.Image, file: BinaryIO) -> np.ndarray | None:
    """Decode a JPEG file that is grey or RGB, upright and free of damage.

    Args:
        image: the file as Pillow opened it; its pixels need not be decoded.
        file: the file, open for reading.

    Returns:
        (H, W, 3) uint8 RGB, with the pixels that Pillow gives; None if the file is another one or simplejpeg is not
        installed, does not agree with Pillow or has a complaint.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or (decode := _equal_decoder()) is None:
        return None
    if image.getexif().get(Base.Orientation, 1) != 1:
        return None
    file.seek(0)
    pixels = _quietly(decode, file.read())
    return pixels if pixels is not None and pixels.shape == (image.height, image.width, 3) else None


def _quietly(decode: Decoder, content: bytes) -> np.ndarray | None:
    """Decode; None for any complaint: simplejpeg raises for warnings of libjpeg, also where Pillow ignores them."""
    try:
        return decode(content)
    except Exception:
        return None


@cache
def _equal_decoder() -> Decoder | None:
    """The decoder of simplejpeg; None if it is not installed or its libjpeg gives other pixels than that of Pillow."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None

    def decode(content: bytes) -> np.ndarray:
        pixels: np.ndarray = decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, strict=True)
        return pixels

    return decode if _agrees(decode) else None


def _agrees(decode: Decoder) -> bool:
    """Whether a decoder gives Pillow's pixels for every chroma subsampling, baseline and progressive, and for grey."""
    noise = np.random.default_rng(0).integers(0, 256, (19, 37, 3), dtype=np.uint8)
    ramp = np.add.outer(np.arange(19) * 9, np.arange(37) * 2)[:, :, None] + np.arange(3) * 5
    for pixels, subsampling, progressive in itertools.product((noise, ramp.astype(np.uint8)), range(3), (False, True)):
        for source in (pixels, pixels[:, :, 0]):
            buffer = io.BytesIO()
            Image.fromarray(source).save(buffer, "JPEG", subsampling=subsampling, progressive=progressive)
            decoded = _quietly(decode, buffer.getvalue())
            if decoded is None or not np.array_equal(decoded, np.asarray(Image.open(buffer).convert("RGB"))):
                return False
    return True
