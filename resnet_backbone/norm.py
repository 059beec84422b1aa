"""Normalisation layers: frozen batch norm, the choice of norm by name, and folding of constant norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import InvalidValue

Norm = Literal["frozen_bn", "bn", "bn_eval", "sync_bn", "gn"]
NORMS: tuple[str, ...] = get_args(Norm)
MakeNorm = Callable[[int], nn.Module]  # number of channels -> norm


def scale_and_shift(norm: FrozenBatchNorm2d | _BatchNorm) -> tuple[Tensor, Tensor]:
    """A norm with constant statistics as a linear function.

    Args:
        norm: a batch norm that uses its running statistics.

    Returns:
        Scale and shift of y = scale * x + shift, both (C,).
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with statistics, scale and shift as buffers, so that training does not change them.

    Formula, key names and default epsilon are those of torchvision's `ops.FrozenBatchNorm2d`. State dicts of ordinary
    batch norms load; their `num_batches_tracked` is dropped.

    Args:
        channels: number of channels, C.
        eps: added to the variance.
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        module: Any = super()  # torch does not annotate this method
        module._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) in its own precision."""
        scale, shift = (t.to(x.dtype).reshape(1, -1, 1, 1) for t in scale_and_shift(self))
        return x * scale + shift

    def extra_repr(self) -> str:
        """Channels and epsilon, for printing."""
        return f"{self.weight.numel()}, eps={self.eps}"


class FixedStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that trains its scale and shift but always uses running statistics (mmdetection's `norm_eval`)."""

    def train(self, mode: bool = True) -> FixedStatsBatchNorm2d:
        """Stay in inference mode, whatever the mode."""
        return super().train(False)


def frozen(part: nn.Module) -> nn.Module:
    """Freeze a part of a net, in place.

    Args:
        part: any module.

    Returns:
        The part, without trainable parameters and with its batch norms replaced by `FrozenBatchNorm2d` of the same
        values. If the part itself is a batch norm, its replacement.
    """
    if isinstance(part, _BatchNorm):
        assert part.running_mean is not None
        norm = FrozenBatchNorm2d(part.num_features, part.eps).to(part.running_mean)  # device and precision
        norm.load_state_dict(part.state_dict())
        return norm
    for name, child in part.named_children():
        part.add_module(name, frozen(child))
    return part.requires_grad_(False)


def make_norm(kind: str, eps: float = 1e-5) -> MakeNorm:
    """Choose a norm by its name.

    Args:
        kind: "frozen_bn", "bn", "bn_eval" (fixed statistics), "sync_bn" or "gn". Group norm has 32 groups (Wu and He,
            ECCV 2018), or the greatest common divisor of 32 and the number of channels in the narrow CIFAR nets.
        eps: epsilon of the norm.

    Returns:
        A function that makes the norm for a number of channels.

    Raises:
        InvalidValue: an unknown name.
    """
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
    """Apply a convolution and its norm; a norm with constant statistics is folded into the convolution's weights.

    Such a norm is linear, so scaling the weights replaces two passes over the activations and their storage for the
    backward pass. The gradients of the weights are the same, through the scaling.

    Args:
        conv: the convolution, or a sequence of layers in its place (the deep stem).
        norm: its norm.
        x: (N, C, H, W).

    Returns:
        norm(conv(x)).
    """
    if not (isinstance(norm, (FrozenBatchNorm2d, FixedStatsBatchNorm2d)) and type(conv) is nn.Conv2d):
        y: Tensor = conv(x)
        if len(y) == 0 and isinstance(norm, _BatchNorm) and not _synchronises(norm):
            # BatchNorm needs a non-empty batch: running statistics are used; scale and shift get zero gradients
            return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        y = norm(y)
        return y
    scale, shift = scale_and_shift(norm)
    weight = conv.weight * scale.reshape(-1, 1, 1, 1)
    if conv.bias is not None:
        shift = shift + scale * conv.bias
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def _synchronises(norm: _BatchNorm) -> bool:
    """Whether the norm exchanges statistics with other processes, which wait even for an empty batch."""
    return isinstance(norm, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()


class ConvNorm(nn.Sequential):
    """A convolution and its norm: modules `0` and `1`.

    Args:
        conv: the convolution.
        norm: its norm.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__(conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both to (N, C, H, W); see `conv_norm`."""
        return conv_norm(self[0], self[1], x)


def conv_layer(in_channels: int, out_channels: int, kernel: int, norm: str = "none") -> nn.Conv2d | ConvNorm:
    """Build a convolution of stride 1 that keeps height and width, with its norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel; odd.
        norm: "none" for a bias instead of a norm, otherwise as for `make_norm`.

    Returns:
        The convolution, or convolution and norm.

    Raises:
        InvalidValue: an unknown norm.
    """
    if norm == "none":
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return ConvNorm(conv, make_norm(norm)(out_channels))


def initialise_convs(part: nn.Module) -> None:
    """Initialise convolutions as He et al. (ICCV 2015): N(0, sqrt(2 / fan-out)), biases zero.

    Args:
        part: the module that holds the convolutions.
    """
    for conv in part.modules():
        if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
