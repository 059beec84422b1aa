"""Anchors equal those of torchvision's generator and of detectron2's formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from heads import Conventions
from heads.anchors import AnchorGrid

SIZES = {"p2": (32.0,), "p3": (64.0,), "p4": (128.0,), "p5": (256.0,), "p6": (512.0,)}
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
RATIOS = (0.5, 1.0, 2.0)
PADDED = (96, 160)  # P6 has 2 x 3 cells: 96 // 2 and 160 // 3 are not 64


def levels(height: int = PADDED[0], width: int = PADDED[1]) -> dict[str, Tensor]:
    return {level: torch.zeros(1, 1, -(-height // s), -(-width // s)) for level, s in STRIDES.items()}


def test_rounded_anchors_on_the_grid_equal_torchvision() -> None:
    reference = AnchorGenerator(tuple(SIZES.values()), (RATIOS,) * 5)
    expected = reference(ImageList(torch.zeros(1, 3, *PADDED), [PADDED]), list(levels().values()))[0]
    ours = AnchorGrid(SIZES, RATIOS, STRIDES, Conventions(round_anchors=True, anchor_stride="grid"))
    assert torch.equal(torch.cat(ours(levels(), PADDED)), expected)


def detectron2_anchors(size: float, stride: int, height: int, width: int) -> Tensor:
    """`DefaultAnchorGenerator.generate_cell_anchors` and `_create_grid_offsets`, offset 0."""
    cell = []
    for ratio in RATIOS:
        w = (size**2.0 / ratio) ** 0.5
        h = ratio * w
        cell.append([-w / 2.0, -h / 2.0, w / 2.0, h / 2.0])
    x, y = torch.arange(0, width * stride, stride), torch.arange(0, height * stride, stride)
    shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([shift_x.reshape(-1), shift_y.reshape(-1)] * 2, dim=1).float()
    return (shifts.view(-1, 1, 4) + torch.tensor(cell).view(1, -1, 4)).reshape(-1, 4)


def test_default_anchors_equal_detectron2() -> None:
    ours = AnchorGrid(SIZES, RATIOS, STRIDES, Conventions())(levels(), PADDED)
    for (level, feature), anchors in zip(levels().items(), ours):
        expected = detectron2_anchors(SIZES[level][0], STRIDES[level], *feature.shape[-2:])
        torch.testing.assert_close(anchors, expected, rtol=0, atol=1e-4)


def test_anchors_are_ordered_by_row_then_column_then_anchor_of_the_cell() -> None:
    grid = AnchorGrid({"p4": (32.0, 64.0)}, RATIOS, {"p4": 16}, Conventions())
    (anchors,) = grid({"p4": torch.zeros(1, 1, 3, 5)}, (48, 80))
    assert grid.per_cell == 6 and anchors.shape == (3 * 5 * 6, 4)
    row, column, anchor = 2, 3, 4
    x1, y1, x2, y2 = anchors[(row * 5 + column) * 6 + anchor].tolist()
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((column * 16, row * 16))
    assert (x2 - x1) * (y2 - y1) == pytest.approx(64**2, rel=1e-5) and y2 - y1 == pytest.approx(x2 - x1)


def test_ratio_is_height_over_width_at_constant_area() -> None:
    (anchors,) = AnchorGrid({"p4": (32.0,)}, RATIOS, {"p4": 16}, Conventions())(
        {"p4": torch.zeros(1, 1, 1, 1)}, (16, 16)
    )
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    torch.testing.assert_close(height / width, torch.tensor(RATIOS))
    torch.testing.assert_close(height * width, torch.full((3,), 1024.0))


@pytest.mark.parametrize(
    ("cast", "dtype"), [("half", torch.float32), ("bfloat16", torch.float32), ("double", torch.float64)]
)
def test_casting_the_detector_keeps_anchors_at_least_float32(cast: str, dtype: torch.dtype) -> None:
    grid = AnchorGrid(SIZES, RATIOS, STRIDES, Conventions())
    before = torch.cat(grid(levels(), PADDED))
    after = torch.cat(getattr(torch.nn.Sequential(grid), cast)()[0](levels(), PADDED))
    assert after.dtype == dtype
    torch.testing.assert_close(after.float(), before, rtol=0, atol=1e-4)


def test_anchors_on_a_missing_level_are_refused() -> None:
    with pytest.raises(ValueError, match=r"anchors are defined for \['p6'\], the neck gives \['p2', 'p3'\]"):
        AnchorGrid({"p2": (32,), "p6": (64,)}, RATIOS, {"p2": 4, "p3": 8}, Conventions())


def test_unequal_numbers_of_anchors_per_level_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of anchor sizes"):
        AnchorGrid({"p2": (32,), "p3": (64, 128)}, RATIOS, {"p2": 4, "p3": 8}, Conventions())
