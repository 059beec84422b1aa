"""Stems, residual blocks, their plain twin, and the shortcuts A, B, C, D.

Source: the paper, figures 3 and 5 and section 3.3. Key names are torchvision's (`conv1`, `bn1`, `downsample.0` ...).
Shapes: x (N, C, H, W); a block of stride s gives (N, width * expansion, ceil(H / s), ceil(W / s)).
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from .norm import ConvNorm, MakeNorm, conv_norm

Shortcut = Literal["A", "B", "C", "D"]


def conv3x3(cin: int, cout: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, stride, padding=dilation, dilation=dilation, bias=False)


def conv1x1(cin: int, cout: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 1, stride, bias=False)


class PaddedIdentity(nn.Module):
    """Shortcut A: subsample, and pad the missing channels with zeros; it has no parameters (section 3.3).

    The zeros are split evenly on both sides, which is how the published CIFAR weights were trained.
    """

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (cout - cin) // 2
        self.after = cout - cin - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class PooledProjection(nn.Sequential):
    """Shortcut D: average pooling, a 1x1 convolution and its norm; modules `0`, `1`, `2` as timm counts them."""

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self[1], self[2], self[0](x))


def make_shortcut(kind: Shortcut, cin: int, cout: int, stride: int, norm: MakeNorm) -> nn.Module | None:
    """The shortcut of one block (B and C project by a strided 1x1, D averages first and projects without a stride),
    None where it is the plain identity."""
    changes = stride != 1 or cin != cout
    if kind == "D" and changes:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        return PooledProjection(pool, conv1x1(cin, cout), norm(cout))
    if kind == "C" or (kind == "B" and changes):
        return ConvNorm(conv1x1(cin, cout, stride), norm(cout))
    return PaddedIdentity(cin, cout, stride) if changes else None


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    expansion = 1
    residual = True
    downsample: nn.Module | None

    def __init__(
        self,
        cin: int,
        width: int,
        stride: int,
        dilation: int,
        norm: MakeNorm,
        shortcut: Shortcut,
        stride_on: str,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(cin, width, stride, dilation)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, 1, dilation)
        self.bn2 = norm(width)
        self.downsample = make_shortcut(shortcut, cin, width, stride, norm) if self.residual else None

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        y = conv_norm(self.conv2, self.bn2, y)
        return F.relu(y + identity, inplace=True)


class PlainBasicBlock(BasicBlock):
    """The same two convolutions without a shortcut: the paper's plain net."""

    residual = False

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        return F.relu(conv_norm(self.conv2, self.bn2, y), inplace=True)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut (figure 5, right)."""

    expansion = 4
    downsample: nn.Module | None

    def __init__(
        self,
        cin: int,
        width: int,
        stride: int,
        dilation: int,
        norm: MakeNorm,
        shortcut: Shortcut,
        stride_on: str,
    ) -> None:
        super().__init__()
        cout = width * self.expansion
        first, middle = (stride, 1) if stride_on == "1x1" else (1, stride)
        self.conv1 = conv1x1(cin, width, first)
        self.bn1 = norm(width)
        self.conv2 = conv3x3(width, width, middle, dilation)
        self.bn2 = norm(width)
        self.conv3 = conv1x1(width, cout)
        self.bn3 = norm(cout)
        self.downsample = make_shortcut(shortcut, cin, cout, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        y = F.relu(conv_norm(self.conv2, self.bn2, y), inplace=True)
        y = conv_norm(self.conv3, self.bn3, y)
        return F.relu(y + identity, inplace=True)


class Stem:
    """7x7 stride 2 (level `c1`), then 3x3 max pooling stride 2 (level `stem`): Table 1, first two rows.

    The modules live on the backbone under torchvision's names; this class only makes them.
    """

    c1_stride, stride = 2, 4

    @staticmethod
    def parts(width: int, norm: MakeNorm) -> dict[str, nn.Module]:
        conv = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        return {"conv1": conv, "bn1": norm(width), "maxpool": nn.MaxPool2d(3, 2, padding=1)}


class DeepStem(Stem):
    """Three 3x3, the first of stride 2, in place of the 7x7; timm's names (`conv1.0` ... `conv1.6`)."""

    @staticmethod
    def parts(width: int, norm: MakeNorm) -> dict[str, nn.Module]:
        half, relu = width // 2, nn.ReLU(inplace=True)
        first, second = [conv3x3(3, half, 2), norm(half), relu], [conv3x3(half, half), norm(half), relu]
        conv = nn.Sequential(*first, *second, conv3x3(half, width))
        return {"conv1": conv, "bn1": norm(width), "maxpool": nn.MaxPool2d(3, 2, padding=1)}


class CifarStem(Stem):
    """3x3 stride 1 and no pooling (section 4.2): `c1` and `stem` are the same level, stride 1."""

    c1_stride, stride = 1, 1

    @staticmethod
    def parts(width: int, norm: MakeNorm) -> dict[str, nn.Module]:
        return {"conv1": conv3x3(3, width), "bn1": norm(width), "maxpool": nn.Identity()}


STEMS: dict[str, type[Stem]] = {"imagenet": Stem, "deep": DeepStem, "cifar": CifarStem}
