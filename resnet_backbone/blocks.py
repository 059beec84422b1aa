"""Stems, residual blocks, plain blocks, and the shortcuts A, B, C and D.

Source: the paper (He et al., CVPR 2016), figures 3 and 5 and section 3.3. Key names are torchvision's (`conv1`, `bn1`,
`downsample.0` ...). A block of stride s maps (N, C, H, W) to (N, width * expansion, ceil(H / s), ceil(W / s)).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .norm import ConvNorm, MakeNorm, conv_norm

Shortcut = Literal["A", "B", "C", "D"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A padded 3x3 convolution, no bias: (N, C, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution, no bias: (N, C, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class PaddedIdentity(nn.Module):
    """Shortcut A: subsampling, and zeros for the additional channels; it has no parameters (section 3.3).

    Half of the zero channels come before the others and half behind them, as in the published CIFAR weights.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: subsampling of height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class PooledProjection(nn.Sequential):
    """Shortcut D: average pooling, a 1x1 convolution and its norm; modules `0`, `1` and `2`, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        return conv_norm(self[1], self[2], self[0](x))


def make_shortcut(kind: Shortcut, in_channels: int, out_channels: int, stride: int, norm: MakeNorm) -> nn.Module | None:
    """Build the shortcut of one block.

    Args:
        kind: A, zero-padded identity; B, a strided 1x1 convolution where the shape changes; C, a strided 1x1
            convolution in every block; D, as B with the stride in an average pooling before the convolution.
        in_channels: channels of the block's input.
        out_channels: channels of the block's output.
        stride: stride of the block.
        norm: makes a norm for a number of channels.

    Returns:
        The shortcut; None for the identity.
    """
    changes = stride != 1 or in_channels != out_channels
    if kind == "D" and changes:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        return PooledProjection(pool, conv1x1(in_channels, out_channels), norm(out_channels))
    if kind == "C" or (kind == "B" and changes):
        return ConvNorm(conv1x1(in_channels, out_channels, stride), norm(out_channels))
    return PaddedIdentity(in_channels, out_channels, stride) if changes else None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: stride of the first convolution.
        dilation: dilation of both convolutions.
        norm: makes a norm for a number of channels.
        shortcut: as for `make_shortcut`.
        stride_on: not used; `Bottleneck` has the same signature.

    Attributes:
        expansion: channels of the output per unit of width.
        residual: whether the block has a shortcut.
    """

    expansion = 1
    residual = True
    downsample: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        norm: MakeNorm,
        shortcut: Shortcut,
        stride_on: str,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, dilation)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, 1, dilation)
        self.bn2 = norm(width)
        self.downsample = make_shortcut(shortcut, in_channels, width, stride, norm) if self.residual else None

    @property
    def last_norm(self) -> nn.Module:
        """The norm at the end of the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width, ceil(H / stride), ceil(W / stride))."""
        identity = x if self.downsample is None else self.downsample(x)
        y = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        y = conv_norm(self.conv2, self.bn2, y)
        return F.relu(y.add_(identity), inplace=True)  # no backward pass reads y itself


class PlainBasicBlock(BasicBlock):
    """The convolutions of `BasicBlock` without a shortcut: the paper's plain net (section 3.3)."""

    residual = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width, ceil(H / stride), ceil(W / stride))."""
        y = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        return F.relu(conv_norm(self.conv2, self.bn2, y), inplace=True)


class Bottleneck(nn.Module):
    """A reducing 1x1, a 3x3 and an expanding 1x1 convolution, and a shortcut (figure 5, right).

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution; the output has 4 * width.
        stride: stride of the block.
        dilation: dilation of the 3x3 convolution.
        norm: makes a norm for a number of channels.
        shortcut: as for `make_shortcut`.
        stride_on: the convolution that carries the stride, "3x3" or "1x1" (the first).

    Attributes:
        expansion: channels of the output per unit of width.
    """

    expansion = 4
    downsample: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        norm: MakeNorm,
        shortcut: Shortcut,
        stride_on: str,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        first, middle = (stride, 1) if stride_on == "1x1" else (1, stride)
        self.conv1 = conv1x1(in_channels, width, first)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, middle, dilation)
        self.bn2 = norm(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = norm(out_channels)
        self.downsample = make_shortcut(shortcut, in_channels, out_channels, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        """The norm at the end of the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * width, ceil(H / stride), ceil(W / stride))."""
        identity = x if self.downsample is None else self.downsample(x)
        y = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        y = F.relu(conv_norm(self.conv2, self.bn2, y), inplace=True)
        y = conv_norm(self.conv3, self.bn3, y)
        return F.relu(y.add_(identity), inplace=True)  # no backward pass reads y itself


class Stem:
    """A 7x7 convolution of stride 2 (level `c1`) and 3x3 max pooling of stride 2 (level `stem`).

    Source: the paper, Table 1, conv1 and the pooling of conv2_x. This class only makes the modules; they belong to the
    net, under torchvision's names.

    Attributes:
        c1_stride: stride of level `c1`, in pixels of the image.
        stride: stride of level `stem`, in pixels of the image.
    """

    c1_stride, stride = 2, 4

    @staticmethod
    def parts(width: int, norm: MakeNorm) -> dict[str, nn.Module]:
        """Build the modules of the stem.

        Args:
            width: channels of its output.
            norm: makes a norm for a number of channels.

        Returns:
            "conv1", "bn1" and "maxpool".
        """
        conv = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        return {"conv1": conv, "bn1": norm(width), "maxpool": nn.MaxPool2d(3, 2, padding=1)}


class DeepStem(Stem):
    """Three 3x3 convolutions, the first of stride 2, in place of the 7x7; names as in timm (`conv1.0` ... `conv1.6`).

    Source: He et al., *Bag of Tricks* (arXiv:1812.01187), figure 2, ResNet-C.
    """

    @staticmethod
    def parts(width: int, norm: MakeNorm) -> dict[str, nn.Module]:
        """Build the modules; as for `Stem.parts`."""
        half, relu = width // 2, nn.ReLU(inplace=True)
        first, second = [conv3x3(3, half, 2), norm(half), relu], [conv3x3(half, half), norm(half), relu]
        conv = nn.Sequential(*first, *second, conv3x3(half, width))
        return {"conv1": conv, "bn1": norm(width), "maxpool": nn.MaxPool2d(3, 2, padding=1)}


class CifarStem(Stem):
    """A 3x3 convolution of stride 1 without pooling (section 4.2): `c1` and `stem` are the same level, of stride 1."""

    c1_stride, stride = 1, 1

    @staticmethod
    def parts(width: int, norm: MakeNorm) -> dict[str, nn.Module]:
        """Build the modules; as for `Stem.parts`."""
        return {"conv1": conv3x3(3, width), "bn1": norm(width), "maxpool": nn.Identity()}


STEMS: dict[str, type[Stem]] = {"imagenet": Stem, "deep": DeepStem, "cifar": CifarStem}
