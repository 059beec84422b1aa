"""Batch norms with constant statistics folded into their convolutions, for inference and export."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .backbone import ResNetBody
from .blocks import BasicBlock, Bottleneck
from .norm import FrozenBatchNorm2d, scale_and_shift

NUMBERED = (ResNetBody, BasicBlock, Bottleneck)  # their conv1 is followed by bn1, conv2 by bn2, ...


@torch.no_grad()
def fold_norms(model: nn.Module) -> nn.Module:
    """Fold batch norms into the convolutions before them, in-place.

    `conv_norm` folds a frozen norm in every forward pass, by the same formula: outputs are equal bit for bit. Group
    norms depend on the input and stay. Foreign modules (timm's, torchvision's) are left alone, apart from their
    `nn.Sequential`s: their code is not known here.

    Args:
        model: in inference mode. Batch norms that use batch statistics there are left alone.

    Returns:
        The model; its folded norms are `nn.Identity`, and their convolutions have biases.
    """
    for owner, conv_name, norm_name in list(_pairs(model)):
        conv, norm = _last(getattr(owner, conv_name)), getattr(owner, norm_name)
        if isinstance(conv, nn.Conv2d) and _is_constant(norm):
            scale, shift = scale_and_shift(norm)
            if conv.bias is not None:
                shift = shift + scale * conv.bias
            conv.weight = nn.Parameter(conv.weight * scale.reshape(-1, 1, 1, 1), requires_grad=False)
            conv.bias = nn.Parameter(shift, requires_grad=False)
            setattr(owner, norm_name, nn.Identity())
    return model


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Modules with the names of a convolution and of the module that follows it."""
    for module in model.modules():
        names = [name for name, _ in module.named_children()]
        if isinstance(module, nn.Sequential):
            yield from ((module, a, b) for a, b in pairwise(names))
        elif isinstance(module, NUMBERED):
            yield from ((module, name, f"bn{name[4:]}") for name in names if name.startswith("conv"))


def _last(module: nn.Module) -> nn.Module:
    """The last layer: that of a deep stem is a sequence of layers."""
    return _last(module[-1]) if isinstance(module, nn.Sequential) and len(module) else module


def _is_constant(norm: nn.Module) -> bool:
    if isinstance(norm, _BatchNorm):
        return norm.affine and norm.running_mean is not None and not norm.training
    return isinstance(norm, FrozenBatchNorm2d)
