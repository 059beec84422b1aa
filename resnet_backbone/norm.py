"""Norms: frozen batch norm, the choice of norm, and a convolution that takes its frozen norm into its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["frozen_bn", "bn", "sync_bn", "gn"]
NORMS: tuple[str, ...] = get_args(Norm)
MakeNorm = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine terms are buffers: nothing can train or update them.

    Same formula, key names and default epsilon as torchvision's `ops.FrozenBatchNorm2d`; files of ordinary batch
    norms load (`num_batches_tracked` is dropped).
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):  # type: ignore[no-untyped-def]
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The norm as y = scale * x + shift, both (C,)."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = (t.to(x.dtype).reshape(1, -1, 1, 1) for t in self.scale_and_shift())
        return x * scale + shift

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def make_norm(kind: str, eps: float = 1e-5) -> MakeNorm:
    """From a norm's name to a function channels -> module. GroupNorm has 32 groups (Wu and He, 2018), or as many
    as divide the channels of the narrow CIFAR nets. Raises ValueError for an unknown name."""
    if kind == "frozen_bn":
        return partial(FrozenBatchNorm2d, eps=eps)
    if kind == "bn":
        return partial(nn.BatchNorm2d, eps=eps)
    if kind == "sync_bn":
        return partial(nn.SyncBatchNorm, eps=eps)
    if kind == "gn":
        return lambda channels: nn.GroupNorm(gcd(32, channels), channels, eps=eps)
    raise ValueError(f"norm {kind!r} is unknown: give one of {', '.join(NORMS)}")


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)), with a frozen norm folded into the convolution's weights on the way.

    A frozen norm is linear and constant, so scaling the few weights replaces two passes over the many activations
    (and their storage for the backward pass); the gradient of the weights comes out the same, through the scaling.
    """
    if not (isinstance(norm, FrozenBatchNorm2d) and type(conv) is nn.Conv2d):
        return norm(conv(x))
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale.reshape(-1, 1, 1, 1)
    if conv.bias is not None:
        shift = shift + scale * conv.bias
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
