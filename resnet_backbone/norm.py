"""Norms: frozen batch norm, the choice of norm, and a convolution that takes its frozen norm into its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import InvalidValue

Norm = Literal["frozen_bn", "bn", "bn_eval", "sync_bn", "gn"]
NORMS: tuple[str, ...] = get_args(Norm)
MakeNorm = Callable[[int], nn.Module]


def _scale_and_shift(norm: FrozenBatchNorm2d | FixedStatsBatchNorm2d) -> tuple[Tensor, Tensor]:
    """A norm of constant statistics as y = scale * x + shift, both (C,)."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


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

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = (t.to(x.dtype).reshape(1, -1, 1, 1) for t in _scale_and_shift(self))
        return x * scale + shift

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class FixedStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose affine terms train and whose statistics do not (mmdetection's `norm_eval`)."""

    def train(self, mode: bool = True) -> FixedStatsBatchNorm2d:
        return super().train(False)


def frozen(part: nn.Module) -> nn.Module:
    """The part with nothing left to train, and its batch norms as `FrozenBatchNorm2d` of the same values; the part
    itself unless it is a batch norm."""
    if isinstance(part, _BatchNorm):
        assert part.running_mean is not None
        norm = FrozenBatchNorm2d(part.num_features, part.eps).to(part.running_mean)  # its device and its precision
        norm.load_state_dict(part.state_dict())
        return norm
    for name, child in part.named_children():
        part.add_module(name, frozen(child))
    return part.requires_grad_(False)


def make_norm(kind: str, eps: float = 1e-5) -> MakeNorm:
    """From a norm's name to a function channels -> module. GroupNorm has 32 groups (Wu and He, 2018), or as many
    as divide the channels of the narrow CIFAR nets. Raises ValueError for an unknown name."""
    if kind == "frozen_bn":
        return partial(FrozenBatchNorm2d, eps=eps)
    if kind == "bn":
        return partial(nn.BatchNorm2d, eps=eps)
    if kind == "bn_eval":
        return lambda channels: FixedStatsBatchNorm2d(channels, eps=eps).eval()
    if kind == "sync_bn":
        return partial(nn.SyncBatchNorm, eps=eps)
    if kind == "gn":
        return lambda channels: nn.GroupNorm(gcd(32, channels), channels, eps=eps)
    raise InvalidValue(f"norm {kind!r} is unknown: give one of {', '.join(NORMS)}")


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)), with a norm of constant statistics folded into the convolution's weights on the way.

    Such a norm is linear, so scaling the few weights replaces two passes over the many activations
    (and their storage for the backward pass); the gradient of the weights comes out the same, through the scaling.
    """
    if not (isinstance(norm, (FrozenBatchNorm2d, FixedStatsBatchNorm2d)) and type(conv) is nn.Conv2d):
        y = conv(x)
        if len(y) == 0 and isinstance(norm, _BatchNorm) and not _synchronises(norm):
            # of nothing there are no statistics; the affine terms still take part, with zero gradients
            return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(y)
    scale, shift = _scale_and_shift(norm)
    weight = conv.weight * scale.reshape(-1, 1, 1, 1)
    if conv.bias is not None:
        shift = shift + scale * conv.bias
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def _synchronises(norm: _BatchNorm) -> bool:
    """Other processes wait for this one's part of the statistics, even if it is none."""
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()


class ConvNorm(nn.Sequential):
    """A convolution and its norm: modules `0` and `1`."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__(conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self[0], self[1], x)


def conv_layer(cin: int, cout: int, kernel: int, norm: str = "none") -> nn.Conv2d | ConvNorm:
    """A convolution of stride 1 that keeps the grid: with a bias where norm is "none", else without one and with its
    norm behind it. Raises ValueError for an unknown norm."""
    if norm == "none":
        return nn.Conv2d(cin, cout, kernel, padding=kernel // 2)
    return ConvNorm(nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False), make_norm(norm)(cout))


def initialise_convs(part: nn.Module) -> None:
    """He et al. (ICCV 2015): N(0, sqrt(2 / fan-out)), biases zero."""
    for conv in part.modules():
        if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
