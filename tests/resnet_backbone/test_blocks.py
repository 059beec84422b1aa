"""Blocks and shortcuts: properties from section 3.3 of the ResNet paper, strides and dilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_backbone import ResNetBackbone, ResNetSpec
from resnet_backbone.blocks import (
    BasicBlock,
    Bottleneck,
    PaddedIdentity,
    PlainBasicBlock,
    make_shortcut,
)
from resnet_backbone.norm import ConvNorm, make_norm

NORM = make_norm("bn")


def test_shortcut_a_subsamples_pads_with_zeros_and_has_no_parameters() -> None:
    shortcut, x = PaddedIdentity(4, 10, stride=2), torch.randn(2, 4, 7, 9)
    y = shortcut(x)
    assert y.shape == (2, 10, 4, 5) and not list(shortcut.parameters())
    assert torch.equal(y[:, 3:7], x[:, :, ::2, ::2])
    assert not y[:, :3].any() and not y[:, 7:].any()


def test_shortcut_b_projects_only_where_the_shape_changes() -> None:
    assert make_shortcut("B", 8, 8, 1, NORM) is None
    assert isinstance(make_shortcut("B", 8, 16, 1, NORM), ConvNorm)
    assert isinstance(make_shortcut("B", 8, 8, 2, NORM), ConvNorm)


def test_shortcut_a_is_the_identity_where_the_shape_does_not_change() -> None:
    assert make_shortcut("A", 8, 8, 1, NORM) is None
    assert isinstance(make_shortcut("A", 8, 16, 2, NORM), PaddedIdentity)


def test_projection_is_a_strided_1x1_convolution_followed_by_a_norm() -> None:
    shortcut, x = make_shortcut("B", 4, 6, 2, NORM), torch.randn(1, 4, 7, 9)
    assert isinstance(shortcut, ConvNorm)
    shortcut.eval()
    weight = shortcut.state_dict()["0.weight"][:, :, 0, 0]
    expected = torch.einsum("oc,nchw->nohw", weight, x[:, :, ::2, ::2])
    torch.testing.assert_close(shortcut(x), shortcut[1](expected))


@pytest.mark.parametrize(("kind", "projections"), [("A", 0), ("B", 3), ("C", 8)])
def test_18_layer_net_with_shortcut_a_b_c_has_0_3_8_projections(kind: str, projections: int) -> None:
    spec = ResNetSpec(BasicBlock, (2, 2, 2, 2), widths=(4, 8, 16, 32), shortcut=kind)  # type: ignore[arg-type]
    net = ResNetBackbone(spec, norm="bn")
    assert sum(isinstance(m, ConvNorm) for m in net.modules()) == projections


@pytest.mark.parametrize("kind", ["A", "B", "C"])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_output_shape_at_odd_sizes_is_the_same_for_every_shortcut(
    kind: str, block: type[BasicBlock | Bottleneck]
) -> None:
    module = block(8, 4, 2, 1, NORM, kind, "3x3")  # type: ignore[arg-type]
    assert module(torch.randn(2, 8, 7, 9)).shape == (2, 4 * block.expansion, 4, 5)


def test_plain_block_equals_the_residual_branch_without_the_identity() -> None:
    residual = BasicBlock(6, 6, 1, 1, NORM, "A", "3x3").eval()
    plain = PlainBasicBlock(6, 6, 1, 1, NORM, "A", "3x3").eval()
    plain.load_state_dict(residual.state_dict())
    x = torch.randn(2, 6, 5, 5)
    branch: list[torch.Tensor] = []
    residual.bn2.register_forward_hook(lambda module, args, out: branch.append(out.clone()))
    residual_output = residual(x)
    torch.testing.assert_close(plain(x), F.relu(branch[0]))
    torch.testing.assert_close(residual_output, F.relu(branch[0] + x))


def test_plain_net_has_the_parameter_shapes_of_the_residual_net_with_shortcut_a() -> None:
    nets = [
        ResNetBackbone(ResNetSpec(block, (2, 2), widths=(8, 16), shortcut="A"), norm="bn", out_levels=["c3"])
        for block in (BasicBlock, PlainBasicBlock)
    ]
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in nets]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("stride_on", "strides"), [("1x1", (2, 1, 1)), ("3x3", (1, 2, 1))])
def test_stride_on_selects_the_strided_convolution(stride_on: str, strides: tuple[int, ...]) -> None:
    block = Bottleneck(16, 4, 2, 1, NORM, "B", stride_on)
    assert tuple(conv.stride[0] for conv in (block.conv1, block.conv2, block.conv3)) == strides


def test_stride_on_the_1x1_ignores_every_second_pixel() -> None:
    """The paper's bottleneck reads every second pixel; torchvision's v1.5 reads all of them."""
    x = torch.randn(1, 16, 8, 8)
    changed = x.clone()
    changed[:, :, 1::2, 1::2] += 1
    output_differs = {}
    for stride_on in ("1x1", "3x3"):
        block = Bottleneck(16, 4, 2, 1, NORM, "B", stride_on).eval()
        output_differs[stride_on] = not torch.equal(block(x), block(changed))
    assert output_differs == {"1x1": False, "3x3": True}


def test_dilation_2_equals_four_interleaved_undilated_convolutions() -> None:
    """The a-trous identity: each of the four subsampled grids is convolved separately."""
    block = BasicBlock(5, 5, 1, 2, NORM, "B", "3x3")
    x = torch.randn(1, 5, 8, 10)
    dilated = block.conv1(x)
    for row in (0, 1):
        for column in (0, 1):
            undilated = F.conv2d(x[:, :, row::2, column::2], block.conv1.weight, padding=1)
            torch.testing.assert_close(dilated[:, :, row::2, column::2], undilated)


def test_c5_dilation_keeps_stride_16_and_all_keys() -> None:
    plain, dilated = (
        ResNetBackbone(ResNetSpec(Bottleneck, (1, 1, 1, 2), widths=(4, 8, 8, 16), c5_dilation=d), norm="bn")
        for d in (1, 2)
    )
    features = dilated(torch.randn(2, 3, 64, 96))
    assert features["c5"].shape[-2:] == features["c4"].shape[-2:] == (4, 6)
    assert dilated.feature_specs["c5"].stride == 16 and plain.feature_specs["c5"].stride == 32
    assert plain.state_dict().keys() == dilated.state_dict().keys()
    convs = [
        m for m in dilated.get_submodule("layer4").modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert [c.dilation for c in convs] == [(2, 2), (2, 2)]
