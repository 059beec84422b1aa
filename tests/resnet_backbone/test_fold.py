"""Folding norms changes no output by more than rounding, and leaves alone what it cannot fold."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from resnet_backbone import RESNETS
from resnet_backbone.backbone import ResNetBackbone
from resnet_backbone.fold import fold_norms
from resnet_backbone.norm import FrozenBatchNorm2d, conv_layer


def with_statistics(module: nn.Module) -> nn.Module:
    """Norms that change their input."""
    for norm in module.modules():
        if isinstance(norm, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
            assert norm.running_mean is not None and norm.running_var is not None
            for values in (norm.weight, norm.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (norm.bias, norm.running_mean):
                nn.init.normal_(values, std=0.2)
    return module.eval()


def outputs(net: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    with torch.inference_mode():
        return list(net(pixels).values())


@pytest.mark.parametrize("norm", ["frozen_bn", "bn_eval", "bn"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50d"])
def test_a_folded_backbone_has_the_outputs_of_the_backbone(name: str, norm: str) -> None:
    net = with_statistics(ResNetBackbone(RESNETS[name], norm=norm))
    pixels = torch.randn(2, 3, 64, 96)
    expected = outputs(net, pixels)
    folded = fold_norms(copy.deepcopy(net))
    kinds = {type(module).__name__ for module in folded.modules()}
    assert not kinds & {"BatchNorm2d", "FrozenBatchNorm2d", "FixedStatsBatchNorm2d"}
    # `conv_norm` folds constant norms by the same formula; an ordinary batch norm normalises the output, as do those
    # within a deep stem
    tolerance = 1e-5 if norm == "bn" or name == "resnet50d" else 0.0
    for level, reference in zip(outputs(folded, pixels), expected, strict=True):
        assert (level - reference).abs().max() <= tolerance * reference.abs().max()


def test_norms_that_depend_on_the_batch_are_left_alone() -> None:
    for norm in ("gn", "bn"):
        net = ResNetBackbone(RESNETS["resnet18"], norm=norm).train()
        before = [str(module) for module in net.modules()]
        assert [str(module) for module in fold_norms(net).modules()] == before


def test_the_bias_of_a_convolution_is_folded_too() -> None:
    layer = conv_layer(3, 5, 3, "frozen_bn")
    assert isinstance(layer, nn.Sequential)
    with_statistics(layer)
    layer[0].bias = nn.Parameter(torch.randn(5))
    x = torch.randn(1, 3, 7, 7)
    expected = layer(x)
    torch.testing.assert_close(fold_norms(layer)(x), expected, rtol=0, atol=0)
