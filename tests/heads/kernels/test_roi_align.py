"""RoIAlign by matrix products equals torchvision's kernel in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heads.kernels import roi_align, roi_align_products
from heads.kernels.roi_align import SMALL_GRID


def regions(count: int, images: int, reach: float) -> Tensor:
    """Regions (R, 5) in and around an image of `reach` pixels, some far outside, some without area."""
    corner = (torch.rand(count, 2, dtype=torch.float64) * 2 - 0.5) * reach
    side = torch.rand(count, 2, dtype=torch.float64) * reach
    side[:: max(1, count // 3)] = 0
    return torch.cat([torch.randint(0, images, (count, 1)).double(), corner, corner + side], dim=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    grid=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    size=st.sampled_from([1, 2, 7]),
    scale=st.sampled_from([1.0, 0.25, 1 / 32]),
    samples=st.sampled_from([0, 1, 2]),
    aligned=st.booleans(),
)
def test_values_and_gradients_equal_torchvision(
    seed: int, grid: tuple[int, int], size: int, scale: float, samples: int, aligned: bool
) -> None:
    torch.manual_seed(seed)
    feature = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    rois = regions(9, 2, max(grid) / scale)
    actual = roi_align_products(feature, rois, size=size, scale=scale, samples=samples, aligned=aligned)
    expected = tv.roi_align(feature, rois, size, scale, samples, aligned=aligned)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weight).sum(), feature)[0] for out in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_a_region_below_one_cell_takes_one_sample_at_any_position() -> None:
    """Without `aligned` it is widened to one cell. Rounding, as in 0.1 + 1 - 0.1 > 1, must not give two samples."""
    feature, corner = torch.randn(1, 2, 9, 9, dtype=torch.float64), torch.linspace(0, 7, 200, dtype=torch.float64)
    rois = torch.stack([corner * 0, corner, corner, corner + 0.5, corner + 0.25], dim=1)
    actual = roi_align_products(feature, rois, size=1, scale=1.0, samples=0, aligned=False)
    torch.testing.assert_close(actual, tv.roi_align(feature, rois, 1, 1.0, 0, aligned=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [8, 128])
def test_small_and_large_grids_equal_torchvision_in_the_precision_of_the_regions(side: int) -> None:
    """SMALL_GRID separates two implementations; both pool bfloat16 features in float32, also under autocast."""
    assert (side**2 <= SMALL_GRID) == (side == 8)
    feature, rois = torch.randn(2, 3, side, side).bfloat16(), regions(12, 2, side * 4.0).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = roi_align(feature, rois, size=7, scale=0.25, samples=0, aligned=True)
    assert actual.dtype == torch.float32
    expected = tv.roi_align(feature.float(), rois, 7, 0.25, 0, aligned=True)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_no_regions_give_an_empty_output_and_zero_gradients() -> None:
    feature = torch.randn(2, 3, 5, 6, requires_grad=True)
    pooled = roi_align(feature, torch.zeros(0, 5), size=7, scale=0.25, samples=0, aligned=True)
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 7, 7) and feature.grad is not None and not feature.grad.any()


@pytest.mark.parametrize("channels", [1, 5, 16])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_kernel_on_slices_of_the_channels_equals_the_whole_kernel(channels: int, threads: int) -> None:
    """Above SMALL_GRID, training gives each thread a slice of the channels; values and gradients stay equal."""
    base = torch.randn(2, channels, 96, 100).contiguous(memory_format=torch.channels_last)
    rois, num_threads = regions(40, 2, 400.0).float(), torch.get_num_threads()
    weight, results = torch.randn(40, channels, 7, 7), []
    torch.set_num_threads(threads)
    try:
        for function in (
            lambda f: roi_align(f, rois, size=7, scale=0.25, samples=0, aligned=True),
            lambda f: tv.roi_align(f.contiguous(), rois, 7, 0.25, 0, aligned=True),
        ):
            feature = base.clone().requires_grad_()
            out = function(feature)
            (out * weight).sum().backward()
            results.append((out.detach(), feature.grad))
    finally:
        torch.set_num_threads(num_threads)
    (actual, actual_gradient), (expected, expected_gradient) = results
    assert torch.equal(actual, expected) and expected.any()
    assert (
        actual_gradient is not None
        and expected_gradient is not None
        and torch.equal(actual_gradient, expected_gradient)
    )
