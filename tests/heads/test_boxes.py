"""Box operations: round trips, parity with torchvision, no computation in half precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from heads import ImageSize
from heads import boxes as B

SIZE = ImageSize(height=480, width=640)
UNIT, TENS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
box = st.tuples(*[st.floats(0, 1000)] * 2, *[st.floats(0.5, 500)] * 2).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


def random_boxes(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    corner, side = torch.rand(count, 2, dtype=dtype) * 600, torch.rand(count, 2, dtype=dtype) * 200 + 1
    return torch.cat([corner, corner + side], dim=1)


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(box, box), min_size=1, max_size=5), weights=st.sampled_from([UNIT, TENS]))
def test_decode_undoes_encode(pairs: list[tuple[list[float], list[float]]], weights: B.BoxWeights) -> None:
    boxes, anchors = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs))
    ratio = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    decoded = B.decode(B.encode(boxes, anchors, weights), anchors, weights)
    within = ratio.log().max(dim=1).values <= B.MAX_LOG_RATIO
    torch.testing.assert_close(decoded[within], boxes[within], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("weights", [UNIT, TENS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_encode_and_decode_equal_torchvision(weights: B.BoxWeights, dtype: torch.dtype) -> None:
    boxes, anchors, coder = random_boxes(50, dtype), random_boxes(50, dtype), BoxCoder(weights)
    torch.testing.assert_close(B.encode(boxes, anchors, weights), coder.encode_single(boxes, anchors))
    deltas = torch.randn(50, 4, dtype=dtype) * 5  # some of them beyond the cap
    assert (deltas[:, 2:] / torch.tensor(weights[2:]) > B.MAX_LOG_RATIO).any() or weights == TENS
    torch.testing.assert_close(B.decode(deltas, anchors, weights), coder.decode_single(deltas, anchors))


def test_deltas_of_any_size_decode_to_finite_boxes() -> None:
    boxes = B.decode(torch.full((1, 4), 1e4), torch.tensor([[0.0, 0.0, 16.0, 16.0]]), UNIT)
    assert boxes.isfinite().all() and torch.allclose(boxes[0, 2:] - boxes[0, :2], torch.tensor(1000.0))


def test_iou_and_area_equal_torchvision() -> None:
    a, b = random_boxes(40), random_boxes(30)
    torch.testing.assert_close(B.iou(a, b), tv.box_iou(a, b))
    torch.testing.assert_close(B.area(a), tv.box_area(a))


def test_iou_of_empty_boxes_is_zero_not_nan() -> None:
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert B.iou(point, point).item() == 0 and B.iou(point, random_boxes(3)).eq(0).all()


def test_iou_of_touching_boxes_is_zero() -> None:
    assert B.iou(torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([[5.0, 0, 9, 5]])).item() == 0


def test_clip_equals_torchvision_and_does_not_swap_height_and_width() -> None:
    boxes = random_boxes(40) * 2 - 200
    assert torch.equal(B.clip(boxes, SIZE), tv.clip_boxes_to_image(boxes, (SIZE.height, SIZE.width)))
    assert B.clip(torch.tensor([[0.0, 0, 999, 999]]), SIZE).tolist() == [[0, 0, 640, 480]]


def test_larger_than_tests_both_sides() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 0, 9], [3, 3, 2, 5]])
    assert B.larger_than(boxes, 1).tolist() == [True, False, False, False]
    assert B.larger_than(boxes, 0).tolist() == [True, True, False, False]


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "area": lambda a, b: B.area(a),
    "iou": B.iou,
    "clip": lambda a, b: B.clip(a, SIZE),
    "encode": lambda a, b: B.encode(a, b, TENS),
    "decode": lambda a, b: B.decode(a, b, (1000.0,) * 4),
    "smooth_l1": lambda a, b: B.smooth_l1_sum(a, b, 0.1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("given_dtype", "result_dtype"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_promoted_and_float64_stays_float64(
    name: str, given_dtype: torch.dtype, result_dtype: torch.dtype
) -> None:
    a, b = random_boxes(4).round().to(given_dtype), random_boxes(4).round().to(given_dtype)
    result = FUNCTIONS[name](a, b)
    assert result.dtype == result_dtype
    torch.testing.assert_close(result, FUNCTIONS[name](a.to(result_dtype), b.to(result_dtype)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_boxes_give_an_empty_result(name: str) -> None:
    no_boxes = torch.zeros(0, 4)
    expected_shape = {"area": (0,), "iou": (0, 0), "smooth_l1": ()}.get(name, (0, 4))
    assert FUNCTIONS[name](no_boxes, no_boxes).shape == expected_shape
    assert B.iou(no_boxes, random_boxes(3)).shape == (0, 3) and B.iou(random_boxes(3), no_boxes).shape == (3, 0)


def test_arguments_are_not_changed_in_place() -> None:
    a, b = random_boxes(4) - 100, random_boxes(4)
    before = a.clone(), b.clone()
    for function in FUNCTIONS.values():
        function(a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_equals_torch_and_is_l1_at_beta_zero(beta: float) -> None:
    predicted, target = torch.randn(30, 4, requires_grad=True), torch.randn(30, 4)
    torch.testing.assert_close(
        B.smooth_l1_sum(predicted, target, beta), F.smooth_l1_loss(predicted, target, beta=beta, reduction="sum")
    )
    (gradient,) = torch.autograd.grad(B.smooth_l1_sum(predicted, target, beta), predicted)
    assert gradient.isfinite().all() and gradient.abs().max() <= 1
