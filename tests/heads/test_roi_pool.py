"""RegionPooler: the level that a region is pooled from, and the pooled values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

from heads import Conventions
from heads.roi_pool import RegionPooler
from resnet_backbone import FeatureSpec

LEVELS = ("p2", "p3", "p4", "p5")
SPECS = {level: FeatureSpec(3, stride) for level, stride in zip(LEVELS, (4, 8, 16, 32))}
HEIGHT, WIDTH = 512, 640


def pooler(levels: tuple[str, ...] = LEVELS, size: int = 7, **conventions: object) -> RegionPooler:
    return RegionPooler(SPECS, levels, size=size, conventions=Conventions(**conventions))  # type: ignore[arg-type]


def features(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {level: torch.randn(2, 3, HEIGHT // s.stride, WIDTH // s.stride, dtype=dtype) for level, s in SPECS.items()}


def random_boxes(count: int) -> Tensor:
    side = 2 ** torch.linspace(4, 9, count)[:, None] * (torch.rand(count, 2) * 0.4 + 0.8)  # 16 to 512 px: all levels
    corner = torch.rand(count, 2) * 100
    return torch.cat([corner, corner + side], dim=1)


@settings(max_examples=200, deadline=None)
@given(width=st.floats(1, 2000), height=st.floats(1, 2000))
def test_levels_equal_torchvision_away_from_the_boundaries(width: float, height: float) -> None:
    exact = math.log2(math.sqrt(width * height) / 224)
    assume(abs(exact - round(exact)) > 1e-4)
    boxes = torch.tensor([[3.0, 5.0, 3 + width, 5 + height]])
    assert torch.equal(pooler().level_of(boxes), initLevelMapper(2, 5)([boxes]))


@pytest.mark.parametrize(
    ("side", "level"), [(8, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (4000, 3), (0, 0)]
)
def test_levels_follow_equation_1_of_the_fpn_paper(side: float, level: int) -> None:
    assert pooler().level_of(torch.tensor([[0.0, 0.0, side, side]])).tolist() == [level]


def test_a_pooled_region_equals_roi_align_on_its_level() -> None:
    inputs, boxes = features(), [random_boxes(9), random_boxes(6)]
    pool = pooler()
    pooled = pool(inputs, boxes)
    assert len(set(pool.level_of(torch.cat(boxes)).tolist())) == 4
    row = 0
    for image, boxes_of_image in enumerate(boxes):
        for box in boxes_of_image:
            level = LEVELS[int(pool.level_of(box[None]))]
            region = torch.cat([torch.tensor([float(image)]), box])[None]
            expected = roi_align(inputs[level], region, 7, 1 / SPECS[level].stride, 0, aligned=True)
            torch.testing.assert_close(pooled[row], expected[0])
            row += 1


def test_torchvisions_conventions_give_its_pooler() -> None:
    inputs, boxes = features(), [random_boxes(9), random_boxes(6)]
    expected = MultiScaleRoIAlign(list(LEVELS), 7, 2)(inputs, boxes, [(HEIGHT, WIDTH)] * 2)
    torch.testing.assert_close(pooler(roi_aligned=False, roi_samples=2)(inputs, boxes), expected)


def test_pooled_regions_are_in_the_order_of_the_boxes() -> None:
    inputs, boxes, order = features(), random_boxes(12), torch.randperm(12)
    no_boxes = torch.zeros(0, 4)
    assert torch.equal(pooler()(inputs, [boxes[order], no_boxes]), pooler()(inputs, [boxes, no_boxes])[order])


@pytest.mark.parametrize("levels", [LEVELS, ("p4",)])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (3, 0)])
def test_images_without_boxes_do_not_change_the_others_and_keep_gradients(
    levels: tuple[str, ...], counts: tuple[int, int]
) -> None:
    inputs = {level: x.requires_grad_() for level, x in features().items()}
    boxes = [random_boxes(count) for count in counts]
    pooled = pooler(levels)(inputs, boxes)
    assert pooled.shape == (sum(counts), 3, 7, 7)
    if sum(counts):
        without_empty_image = pooler(levels)(
            {k: x[counts.index(3)][None] for k, x in inputs.items()}, [torch.cat(boxes)]
        )
        torch.testing.assert_close(pooled, without_empty_image)
    pooled.sum().backward()  # without boxes, gradients are zero, not None
    assert all(inputs[level].grad is not None for level in levels)


def test_only_the_level_of_a_region_gets_a_gradient() -> None:
    inputs = {level: x.requires_grad_() for level, x in features().items()}
    pooler()(inputs, [torch.tensor([[10.0, 10, 260, 260]]), torch.zeros(0, 4)]).sum().backward()
    levels_with_gradient = {level for level, x in inputs.items() if x.grad is not None and x.grad.abs().sum() > 0}
    assert levels_with_gradient == {"p4"} and inputs["p4"].grad[1].abs().sum() == 0  # type: ignore[index]


def test_half_precision_features_are_pooled_in_the_precision_of_the_boxes() -> None:
    inputs, boxes = features(torch.bfloat16), [random_boxes(5), random_boxes(2)]
    pooled = pooler()(inputs, boxes)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pooler()({k: x.float() for k, x in inputs.items()}, boxes))


def test_a_missing_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"read from \['p7'\], the neck gives \['p2', 'p3', 'p4', 'p5'\]"):
        pooler(("p2", "p7"))
