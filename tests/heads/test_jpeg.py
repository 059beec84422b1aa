"""JPEG files decoded by simplejpeg have Pillow's pixels, and damaged ones are Pillow's to read or to refuse."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heads import jpeg
from heads.images import UnreadableImage, decode_image
from heads.jpeg import decode_plain_jpeg

SCENE = np.add.outer(np.arange(75) * 2.0, 60 * np.sin(np.arange(97) / 5))[:, :, None] + np.arange(3) * 40
PICTURE = np.clip(SCENE + np.random.default_rng(0).normal(0, 20, SCENE.shape) + 20, 0, 255).astype(np.uint8)


def saved(mode: str = "RGB", size: tuple[int, int] = (97, 75), **options: object) -> bytes:
    """A JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).resize(size).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def quick(content: bytes) -> np.ndarray | None:
    """What simplejpeg makes of a file; None if it is left to Pillow."""
    file = io.BytesIO(content)
    return decode_plain_jpeg(Image.open(file), file)


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "simplejpeg", None)  # importing it fails
        jpeg._equal_decoder.cache_clear()
        try:
            yield
        finally:
            jpeg._equal_decoder.cache_clear()


def outcome(content: bytes) -> tuple[object, ...]:
    """The pixels of a file, or the message of its error."""
    try:
        pixels = decode_image(io.BytesIO(content), "photo.jpg")
    except UnreadableImage as error:
        return (re.sub("0x[0-9a-f]+", "", str(error)),)  # without the address of a file object
    return pixels.shape, str(pixels.dtype), pixels.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("restart", [0, 3])
@pytest.mark.parametrize("size", [(97, 75), (1, 1), (7, 9), (8, 8), (64, 17)])
def test_plain_files_have_the_pixels_of_pillow(
    mode: str, progressive: bool, subsampling: str, restart: int, size: tuple[int, int]
) -> None:
    content = saved(
        mode, size, progressive=progressive, subsampling=subsampling, restart_marker_blocks=restart, quality=80
    )
    pixels = quick(content)
    assert pixels is not None and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_rgb_stored_without_a_colour_transform_has_the_pixels_of_pillow() -> None:
    content = saved(keep_rgb=True)
    pixels = quick(content)
    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_photographs_have_the_pixels_of_pillow(coco_mini: Path) -> None:
    paths = sorted((coco_mini / "val2017").glob("*.jpg"))[:40]
    decoded = 0
    for path in paths:
        pixels = quick(path.read_bytes())
        decoded += pixels is not None
        assert pixels is None or np.array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))
    assert decoded == len(paths) > 0


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(exif=exif)


def multi_picture() -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(PICTURE)
    image.save(buffer, "MPO", save_all=True, append_images=[image.rotate(90)])
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [saved("CMYK"), *(turned(n) for n in range(2, 9)), multi_picture(), png(), saved()[:-400], saved()[:-2]],
    ids=["cmyk", *(f"turned{n}" for n in range(2, 9)), "mpo", "png", "truncated", "without its end"],
)
def test_other_files_are_left_to_pillow(content: bytes) -> None:
    assert quick(content) is None
    with_simplejpeg = outcome(content)
    with without_simplejpeg():
        assert outcome(content) == with_simplejpeg


@settings(max_examples=150, deadline=None)
@given(
    progressive=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.tuples(st.floats(0, 1), st.integers(0, 60)),
    keep=st.just(1.0) | st.floats(0.01, 1),
    tail=st.sampled_from([b"", b"\xff\xd9", b"trailing"]),
)
def test_a_damaged_file_is_read_or_refused_as_by_pillow_alone(
    progressive: bool, changes: list[tuple[float, int]], cut: tuple[float, int], keep: float, tail: bytes
) -> None:
    content = bytearray(saved(progressive=progressive, size=(40, 30)))
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    start = int(cut[0] * len(content))
    del content[start : start + cut[1]]
    damaged = bytes(content[: int(keep * len(content))]) + tail
    with_simplejpeg = outcome(damaged)
    with without_simplejpeg():
        assert outcome(damaged) == with_simplejpeg


def test_a_decoder_with_other_pixels_than_pillow_is_not_used() -> None:
    from simplejpeg import decode_jpeg

    assert jpeg._agrees(lambda content: decode_jpeg(content, "RGB"))
    assert not jpeg._agrees(lambda content: decode_jpeg(content, "RGB", fastupsample=True))
    assert not jpeg._agrees(lambda content: decode_jpeg(content, "RGB", fastdct=True))
    assert not jpeg._agrees(lambda content: decode_jpeg(content, "BGR"))


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(UnreadableImage, match="photo.jpg is too large .*exceeds limit of 100 pixels"):
        decode_image(io.BytesIO(saved()), "photo.jpg", max_pixels=100)
