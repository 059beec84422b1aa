"""RoIAlign by weighted rows equals torchvision's kernel in values and gradients."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from heads.kernels import RoIAlign, roi_align, roi_align_operator, roi_align_rows


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
    actual = roi_align_rows(feature, rois, size=size, scale=scale, samples=samples, aligned=aligned)
    expected = tv.roi_align(feature, rois, size, scale, samples, aligned=aligned)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weight).sum(), feature)[0] for out in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_a_region_below_one_cell_takes_one_sample_at_any_position() -> None:
    """Without `aligned` it is widened to one cell. Rounding, as in 0.1 + 1 - 0.1 > 1, must not give two samples."""
    feature, corner = torch.randn(1, 2, 9, 9, dtype=torch.float64), torch.linspace(0, 7, 200, dtype=torch.float64)
    rois = torch.stack([corner * 0, corner, corner, corner + 0.5, corner + 0.25], dim=1)
    actual = roi_align_rows(feature, rois, size=1, scale=1.0, samples=0, aligned=False)
    torch.testing.assert_close(actual, tv.roi_align(feature, rois, 1, 1.0, 0, aligned=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("kernel", [roi_align_rows, roi_align_operator])
def test_positions_of_bfloat16_features_are_not_rounded(kernel: RoIAlign, samples: int) -> None:
    """bfloat16 regions would lie up to 2 px away; the features alone lose three decimal digits."""
    feature, rois = torch.randn(2, 3, 96, 128).bfloat16(), regions(12, 2, 500.0).float()
    actual = kernel(feature, rois, size=7, scale=0.25, samples=samples, aligned=True)
    assert actual.dtype == torch.bfloat16
    expected = tv.roi_align(feature.float(), rois, 7, 0.25, samples, aligned=True)
    torch.testing.assert_close(actual.float(), expected, rtol=0.01, atol=0.01)
    rounded = tv.roi_align(feature.float(), rois.bfloat16().float(), 7, 0.25, samples, aligned=True)
    assert (rounded - expected).abs().max() > 5 * (actual.float() - expected).abs().max()


def test_no_regions_give_an_empty_output_and_zero_gradients() -> None:
    feature = torch.randn(2, 3, 5, 6, requires_grad=True)
    pooled = roi_align(feature, torch.zeros(0, 5), size=7, scale=0.25, samples=0, aligned=True)
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 7, 7) and feature.grad is not None and not feature.grad.any()


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_results_do_not_depend_on_threads_or_memory_format(samples: int, memory_format: torch.memory_format) -> None:
    base, rois = torch.randn(2, 16, 96, 100), regions(40, 2, 400.0).float()
    weight, results, num_threads = torch.randn(40, 16, 7, 7), [], torch.get_num_threads()
    try:
        for threads, layout in ((1, torch.contiguous_format), (3, memory_format), (3, memory_format)):
            torch.set_num_threads(threads)
            feature = base.clone(memory_format=layout).requires_grad_()
            out = roi_align(feature, rois, size=7, scale=0.25, samples=samples, aligned=True)
            (out * weight).sum().backward()
            assert feature.grad is not None
            results.append((out.detach(), feature.grad))
    finally:
        torch.set_num_threads(num_threads)
    for pooled, gradient in results[1:]:
        assert torch.equal(pooled, results[0][0]) and torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("samples", [0, 2])
def test_regions_that_are_not_finite_read_nothing_outside_the_grid(samples: int) -> None:
    feature = torch.randn(1, 3, 9, 9)
    rois = torch.tensor([[0, float("nan"), 1, 5, 5], [0, 1, 1, 5, 5]])
    pooled = roi_align_rows(feature, rois, size=2, scale=1.0, samples=samples, aligned=True)
    expected = tv.roi_align(feature, rois[1:], 2, 1.0, samples, aligned=True)
    torch.testing.assert_close(pooled[1:], expected, rtol=1e-5, atol=1e-5)


def test_a_call_keeps_no_more_memory_than_its_result_and_its_pairs() -> None:
    """16 weighted cells per bin at 2 x 2 samples: what is saved for the gradient does not grow with the grid."""
    feature = torch.randn(1, 4, 300, 300, requires_grad=True)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        roi_align(feature, regions(10, 1, 300.0).float(), size=7, scale=1.0, samples=2, aligned=True)
    assert 0 < sum(tensor.numel() for tensor in saved) <= 10 * 49 * (2 * 16 + 1)
