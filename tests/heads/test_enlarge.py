"""Enlarging with OpenCV gives Pillow's pixels, also where the exact value is half way between two levels."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from heads import ImageSize, enlarge
from heads.images import resize

FIRST, SECOND = (levels.reshape(-1) for levels in np.meshgrid(np.arange(256), np.arange(256)))


def pillow(image: np.ndarray, size: ImageSize) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size.width, size.height), Image.Resampling.BILINEAR))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    grown=st.tuples(st.floats(1, 5), st.floats(1, 5)) | st.sampled_from([(1.25, 1.25), (1.5, 2), (2, 1), (1, 4)]),
    levels=st.sampled_from([2, 3, 256]),
    seed=st.integers(0, 999),
)
def test_enlarged_images_have_the_pixels_of_pillow(
    height: int, width: int, grown: tuple[float, float], levels: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, levels, (height, width, 3)) * (255 // (levels - 1))
    size = ImageSize(height=int(height * grown[0]), width=int(width * grown[1]))
    enlarged = enlarge.enlarge(image.astype(np.uint8), size)
    assert enlarged is not None and enlarged.dtype == np.uint8
    assert np.array_equal(enlarged, pillow(image.astype(np.uint8), size))


@pytest.mark.parametrize(
    ("old", "new"), [(2, 3), (4, 5), (3, 8), (427, 640), (480, 800), (427, 673), (640, 1333), (500, 4096), (255, 510)]
)
def test_every_pair_of_neighbours_has_the_level_of_22_bit_weights(old: int, new: int) -> None:
    """Pillow's fixed-point sum, for all 65,536 pairs and a sample of the fractions of an axis."""
    axis = enlarge._axis(old, new)
    for x in sorted({*range(min(new, 20)), *np.random.default_rng(0).integers(0, new, 40).tolist(), new - 1}):
        first, a, second, b, shift = (column[x] for column in axis)
        place = (x + 0.5) * (old / new) - 0.5
        weight = int((place - np.floor(place)) * 2**22 + 0.5)
        if first == second:  # at the edges, or a fraction of 0
            assert place < 0 or place > old - 1 or weight == 0
            continue
        assert (first, second) == (int(place), int(place) + 1)
        expected = (FIRST * (2**22 - weight) + SECOND * weight + 2**21) >> 22
        actual = cv2.addWeighted(FIRST.astype(np.uint8), a, SECOND.astype(np.uint8), b, shift)
        assert np.array_equal(actual.reshape(-1), expected)


@pytest.mark.parametrize("size", [ImageSize(640, 853), ImageSize(800, 1067), ImageSize(480, 900)])
def test_resize_of_a_view_has_the_pixels_of_pillow(size: ImageSize) -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)[:, ::-1]
    assert np.array_equal(resize(image, size), pillow(np.ascontiguousarray(image), size))


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (np.zeros((20, 30, 3), np.uint8), ImageSize(19, 60)),
        (np.zeros((20, 30, 3), np.uint8), ImageSize(40, 29)),
        (np.zeros((20, 30, 3), np.uint8), ImageSize(40, 5000)),
        (np.zeros((20, 30), np.uint8), ImageSize(40, 60)),
        (np.zeros((20, 30, 4), np.uint8), ImageSize(40, 60)),
        (np.zeros((20, 30, 3), np.float32), ImageSize(40, 60)),
        (np.zeros((0, 30, 3), np.uint8), ImageSize(40, 60)),
    ],
)
def test_what_is_shrunk_or_unusual_is_left_to_pillow(image: np.ndarray, size: ImageSize) -> None:
    assert enlarge.enlarge(image, size) is None


def test_without_opencv_images_are_resized_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it fails
    enlarge._agrees.cache_clear()
    assert enlarge.enlarge(image, ImageSize(60, 80)) is None
    assert np.array_equal(resize(image, ImageSize(60, 80)), pillow(image, ImageSize(60, 80)))
    enlarge._agrees.cache_clear()


def test_a_difference_to_pillow_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert enlarge._agrees.__wrapped__()
    exact = enlarge._axis
    monkeypatch.setattr(enlarge, "_axis", lambda old, new: (*exact(old, new)[:4], [0.02] * new))
    assert not enlarge._agrees.__wrapped__()
