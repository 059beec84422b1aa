"""Preprocess: the pixels that weights were trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_backbone import Preprocess

CAFFE = Preprocess(channel_order="bgr", value_range=255, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))


def random_image(height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_the_default_is_torchvisions_normalisation() -> None:
    image, rule = random_image(), Preprocess()
    want = tv.normalize(tv.to_dtype(image, torch.float32, scale=True), list(rule.mean), list(rule.std))
    torch.testing.assert_close(rule.normalise(image), want)


def test_bgr_255_is_detectron2s_caffe_formula() -> None:
    """Blue first, its mean subtracted from 0..255, the deviation one."""
    image = random_image()
    red, green, blue = image.float()
    want = torch.stack([blue - 103.53, green - 116.28, red - 123.675])
    torch.testing.assert_close(CAFFE.normalise(image), want, rtol=0, atol=0)


def test_the_same_rule_in_both_orders_and_ranges_is_the_same_pixels() -> None:
    """A rule's mean and std are in its own order and range."""
    image, rgb = random_image(), Preprocess()
    other = Preprocess("bgr", 255, tuple(255 * m for m in rgb.mean[::-1]), tuple(255 * s for s in rgb.std[::-1]))  # type: ignore[arg-type]
    torch.testing.assert_close(other.normalise(image).flip(0), rgb.normalise(image), rtol=1e-5, atol=1e-5)


def test_a_float_image_is_refused() -> None:
    with pytest.raises(TypeError, match="images are uint8 RGB, 0 to 255; this one is torch.float32"):
        Preprocess().normalise(torch.rand(3, 4, 4))


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4), (3, 4), (2, 1, 4, 4)])
def test_another_layout_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images are \\(3, H, W\\) or \\(N, 3, H, W\\), this one is"):
        Preprocess().normalise(torch.zeros(shape, dtype=torch.uint8))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=3),
    multiple=st.sampled_from([1, 32]),
)
def test_padding_keeps_every_image_and_fills_with_zeros_to_the_next_multiple(
    sizes: list[tuple[int, int]], multiple: int
) -> None:
    images = [torch.rand(3, *size) + 1 for size in sizes]
    batch = Preprocess(pad_to_multiple_px=multiple).pad(images)
    for side, largest in zip(batch.shape[2:], (max(h for h, _ in sizes), max(w for _, w in sizes))):
        assert side % multiple == 0 and largest <= side < largest + multiple
    for row, image in zip(batch, images):
        assert torch.equal(row[:, : image.shape[1], : image.shape[2]], image)
        assert row.count_nonzero() == image.numel()


def test_the_padding_is_zero_after_normalising_not_black() -> None:
    """Zero is the mean colour; black would be (0 - mean) / std, about -2."""
    rule = Preprocess(pad_to_multiple_px=32)
    batch = rule.pad([rule.normalise(torch.zeros(3, 10, 10, dtype=torch.uint8))])
    assert batch[0, 0, 0, 0] < -2 and batch[0, :, 10:].eq(0).all() and batch[0, :, :, 10:].eq(0).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"channel_order": "grb"}, "channel_order='grb'"),
        ({"value_range": 256}, "value_range=256: give 'rgb' or 'bgr', 1 or 255"),
        ({"std": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"short_side_px": 0}, "short_side_px=0 must be positive"),
        ({"short_side_px": 800, "long_side_px": 600}, "at most long_side_px=600"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Preprocess(**wrong)
