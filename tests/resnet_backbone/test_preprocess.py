"""`Preprocess`: normalisation, channel order, padding and validation."""

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


def test_default_equals_torchvisions_normalisation() -> None:
    image, preprocess = random_image(), Preprocess()
    expected = tv.normalize(tv.to_dtype(image, torch.float32, scale=True), list(preprocess.mean), list(preprocess.std))
    torch.testing.assert_close(preprocess.normalise(image), expected)


def test_bgr_0_to_255_equals_detectron2s_caffe_normalisation() -> None:
    """BGR, values 0 to 255, minus the mean, with a standard deviation of 1."""
    image = random_image()
    red, green, blue = image.float()
    expected = torch.stack([blue - 103.53, green - 116.28, red - 123.675])
    torch.testing.assert_close(CAFFE.normalise(image), expected, rtol=0, atol=0)


def test_mean_and_std_are_in_the_channel_order_and_value_range_of_the_weights() -> None:
    """The same normalisation written for RGB in 0 to 1 and for BGR in 0 to 255 gives the same pixels."""
    image, rgb = random_image(), Preprocess()
    bgr = Preprocess("bgr", 255, tuple(255 * m for m in rgb.mean[::-1]), tuple(255 * s for s in rgb.std[::-1]))  # type: ignore[arg-type]
    torch.testing.assert_close(bgr.normalise(image).flip(0), rgb.normalise(image), rtol=1e-5, atol=1e-5)


def test_float_image_is_refused() -> None:
    with pytest.raises(TypeError, match="images are uint8 RGB, 0 to 255; this one is torch.float32"):
        Preprocess().normalise(torch.rand(3, 4, 4))


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4), (3, 4), (2, 1, 4, 4)])
def test_images_that_are_not_channels_first_rgb_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images are \\(3, H, W\\) or \\(N, 3, H, W\\), this one is"):
        Preprocess().normalise(torch.zeros(shape, dtype=torch.uint8))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=3),
    multiple=st.sampled_from([1, 32]),
)
def test_padding_adds_zeros_up_to_the_next_multiple_and_keeps_the_images(
    sizes: list[tuple[int, int]], multiple: int
) -> None:
    images = [torch.rand(3, *size) + 1 for size in sizes]
    batch = Preprocess(pad_to_multiple_px=multiple).pad(images)
    for side, largest in zip(batch.shape[2:], (max(h for h, _ in sizes), max(w for _, w in sizes))):
        assert side % multiple == 0 and largest <= side < largest + multiple
    for row, image in zip(batch, images):
        assert torch.equal(row[:, : image.shape[1], : image.shape[2]], image)
        assert row.count_nonzero() == image.numel()


def test_padding_is_zero_after_normalising_not_black() -> None:
    """Zero is the mean colour; black would be (0 - mean) / std, about -2."""
    preprocess = Preprocess(pad_to_multiple_px=32)
    batch = preprocess.pad([preprocess.normalise(torch.zeros(3, 10, 10, dtype=torch.uint8))])
    assert batch[0, 0, 0, 0] < -2 and batch[0, :, 10:].eq(0).all() and batch[0, :, :, 10:].eq(0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel_order": "grb"}, "channel_order='grb'"),
        ({"value_range": 256}, "value_range=256: give 'rgb' or 'bgr', 1 or 255"),
        ({"std": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"short_side_px": 0}, "short_side_px=0 must be positive"),
        ({"short_side_px": 800, "long_side_px": 600}, "at most long_side_px=600"),
    ],
)
def test_invalid_preprocess_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**fields)
