"""Random crops are parts of the image at uniform positions, and depend only on their seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from resnet_backbone import Preprocess
from tools.data.crops import COLOUR_AXES, COLOUR_STD, RandomCrop
from tools.data.labelled import LabelledImage

RECORD = LabelledImage(3, "a.png", 7)
CIFAR = RandomCrop(32, None, 4, 0.5, 0.0, Preprocess())
GREY = np.array([124, 116, 104])  # the mean colour, 255 * (0.485, 0.456, 0.406)


def numbered(side: int) -> np.ndarray:
    """An image with its row in red, its column in green, and 255 in blue."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([rows, columns, np.full_like(rows, 255)], -1).astype(np.uint8)


def test_a_cifar_crop_is_a_part_of_the_padded_image_or_its_reflection() -> None:
    image, seen = numbered(32), Counter[tuple[int, int, bool]]()
    padded = np.full((40, 40, 3), GREY, dtype=np.uint8)
    padded[4:36, 4:36] = image
    for seed in range(2000):
        pixels, label = CIFAR(image, RECORD, seed)
        assert label == 7 and pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
        crop = pixels.permute(1, 2, 0).numpy()
        inside = np.argwhere(crop[:, :, 2] == 255)[0]
        flipped = bool(crop[inside[0], 16, 1] > crop[inside[0], 17, 1])
        straight = crop[:, ::-1] if flipped else crop
        first = np.argwhere(straight[:, :, 2] == 255)[0]
        row, column = straight[tuple(first)][:2]
        top, left = int(row) + 4 - int(first[0]), int(column) + 4 - int(first[1])
        assert np.array_equal(straight, padded[top : top + 32, left : left + 32])
        seen[top, left, flipped] += 1
    # 81 positions, with and without a flip: each about 2000 / 162 = 12 times
    assert len({(top, left) for top, left, _ in seen}) == 81
    tops, lefts = (Counter(key[i] for key in seen.elements()) for i in (0, 1))
    for counts in (tops, lefts):
        assert all(abs(n - 2000 / 9) < 5 * (2000 / 9) ** 0.5 for n in counts.values())
    flips = sum(n for (_, _, flipped), n in seen.items() if flipped)
    assert abs(flips - 1000) < 5 * 500**0.5
    joint = sum(n for (top, _, flipped), n in seen.items() if flipped and top < 4)
    assert abs(joint / 2000 - (4 / 9) / 2) < 0.06  # position and flip are independent


def test_a_crop_depends_only_on_its_seed() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    crop = RandomCrop(224, (256, 480), 0, 0.5, 0.1, Preprocess())
    first = [crop(image, RECORD, seed)[0] for seed in range(4)]
    again = [crop(image, RECORD, seed)[0] for seed in reversed(range(4))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], first[1])


def test_scales_are_drawn_from_256_to_480() -> None:
    """In an image with a slope of one grey value per pixel, the slope of a crop gives its scale."""
    image = np.repeat(np.linspace(0, 255, 256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    crop = RandomCrop(224, (256, 480), 0, 0.0, 0.0, Preprocess())
    scales = []
    for seed in range(300):
        row = crop(image, RECORD, seed)[0][0, 100].float()
        scales.append(223 / float(row[-1] - row[0]))
    assert 0.98 < min(scales) < 1.05 and 1.8 < max(scales) < 1.95
    assert np.median(scales) == pytest.approx(368 / 256, abs=0.08)


def test_colours_shift_along_imagenets_axes() -> None:
    """The covariance of the shifts follows from the published axes and deviations."""
    image = np.full((32, 32, 3), 128, dtype=np.uint8)
    crop = RandomCrop(32, None, 0, 0.0, 0.5, Preprocess())
    shifted = torch.stack([crop(image, RECORD, seed)[0] for seed in range(3000)])
    seen = shifted[:, :, 0, 0].double() - 128
    assert torch.equal(shifted, shifted[:, :, :1, :1].expand_as(shifted))  # one colour for the whole image
    expected = torch.tensor(COLOUR_AXES @ np.diag((255 * 0.5 * COLOUR_STD) ** 2) @ COLOUR_AXES.T)
    assert float(seen.mean(0).abs().max()) < 2.0
    torch.testing.assert_close(torch.cov(seen.T), expected, rtol=0.1, atol=2.0)
    # the axes are orthonormal
    np.testing.assert_allclose(COLOUR_AXES.T @ COLOUR_AXES, np.eye(3), atol=2e-3)


def test_padding_is_the_mean_colour_as_rgb() -> None:
    caffe = Preprocess(channel_order="bgr", value_range=255, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    for preprocess in (Preprocess(), caffe):
        pixels = RandomCrop(32, None, 12, 0.0, 0.0, preprocess)(image, RECORD, 0)[0]
        assert pixels[:, 0, 0].tolist() == GREY.tolist()
        assert float(preprocess.normalise(pixels)[:, 0, 0].abs().max()) < 1.0  # about zero after normalisation
