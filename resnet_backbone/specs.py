"""What a ResNet is made of, as data: a depth is a row of `RESNETS`, never a subclass.

Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition* (CVPR 2016): Table 1 (ImageNet nets),
section 3.3 (plain nets and shortcuts A, B, C), section 4.2 (CIFAR nets: 6n + 2 layers of widths 16, 32, 64).
Shortcut D and the deep stem: He et al., *Bag of Tricks* (arXiv:1812.01187), figure 2, as timm's `resnet50d` has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .blocks import BasicBlock, Bottleneck, PlainBasicBlock, Shortcut
from .errors import InvalidValue, did_you_mean

BlockType = type[BasicBlock] | type[Bottleneck] | type[PlainBasicBlock]


@dataclass(frozen=True)
class StageSpec:
    """One stage (`layer1` ... `layer4`): how many blocks, how wide, and what its first block does to the grid."""

    level: str  # "c2" ... "c5"
    blocks: int
    width: int  # channels of the 3x3 convolutions
    stride: int  # of the first block
    dilation: int  # of every 3x3 in the stage


@dataclass(frozen=True)
class ResNetSpec:
    """A whole net.

    `stem`: "imagenet" a 7x7, "deep" three 3x3, "cifar" one 3x3 without pooling.
    `shortcut`: A zero-padded identity, B projection where the shape changes, C projection in every block, D as B with
    the stride in an average pooling before the projection.
    `stride_on`: which convolution of a bottleneck carries the stride: "3x3" (torchvision, "v1.5") or "1x1"
    (the paper, caffe, detectron2's MSRA weights). `c5_dilation` 2 keeps C5 at C4's stride (DC5): every 3x3 of the
    stage is dilated, as detectron2 does (torchvision leaves the first one undilated).
    `zero_init_last_norm` starts every residual branch at zero (Goyal et al., arXiv:1706.02677, section 5.1).
    """

    block: BlockType
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Literal["imagenet", "deep", "cifar"] = "imagenet"
    shortcut: Shortcut = "B"
    stride_on: Literal["3x3", "1x1"] = "3x3"
    c5_dilation: Literal[1, 2] = 1
    zero_init_last_norm: bool = False

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths) or not 1 <= len(self.depths) <= 4:
            raise InvalidValue(
                f"depths {self.depths} and widths {self.widths} must have the same length, 1 to 4: one entry a stage"
            )
        if min(*self.depths, *self.widths) < 1:
            raise InvalidValue(f"depths {self.depths} and widths {self.widths} must be at least one everywhere")
        for name, allowed in (
            ("shortcut", ("A", "B", "C", "D")),
            ("stride_on", ("3x3", "1x1")),
            ("stem", ("imagenet", "deep", "cifar")),
            ("c5_dilation", (1, 2)),
        ):
            if getattr(self, name) not in allowed:
                raise InvalidValue(
                    f"{name}={getattr(self, name)!r} is unknown: give one of {', '.join(map(str, allowed))}"
                )
        if self.stride_on == "1x1" and not issubclass(self.block, Bottleneck):
            raise InvalidValue(f"stride_on='1x1' needs a bottleneck, {self.block.__name__} has no 1x1: leave it out")
        if self.zero_init_last_norm and issubclass(self.block, PlainBasicBlock):
            raise InvalidValue(
                "zero_init_last_norm gives a plain net zero outputs, since it has no shortcut: leave it out"
            )
        if self.c5_dilation != 1 and len(self.depths) < 4:
            raise InvalidValue(f"c5_dilation={self.c5_dilation} needs a fourth stage, this net has {len(self.depths)}")

    @property
    def stem_width(self) -> int:
        return self.widths[0]

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        rows = []
        for index, (blocks, width) in enumerate(zip(self.depths, self.widths)):
            dilation = self.c5_dilation if index == 3 else 1
            stride = 1 if index == 0 or dilation > 1 else 2
            rows.append(StageSpec(f"c{index + 2}", blocks, width, stride, dilation))
        return tuple(rows)


def find_spec(net: str | ResNetSpec) -> ResNetSpec:
    """A row of `RESNETS` by its name; a spec is itself. Raises ValueError with the nearest name."""
    if isinstance(net, str) and net not in RESNETS:
        raise InvalidValue(f"no ResNet is called {net!r}: {did_you_mean(net, RESNETS)}")
    return RESNETS[net] if isinstance(net, str) else net


def _cifar(depth: int, block: BlockType = BasicBlock, shortcut: Shortcut = "A") -> ResNetSpec:
    n = (depth - 2) // 6
    return ResNetSpec(block, depths=(n, n, n), widths=(16, 32, 64), stem="cifar", shortcut=shortcut)


# without a letter a row is what is published under its name: torchvision's nets have shortcut B, the CIFAR nets A
RESNETS: dict[str, ResNetSpec] = {
    "resnet18": ResNetSpec(BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": ResNetSpec(BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": ResNetSpec(Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": ResNetSpec(Bottleneck, depths=(3, 4, 23, 3)),
    "resnet152": ResNetSpec(Bottleneck, depths=(3, 8, 36, 3)),
    "resnet50d": ResNetSpec(Bottleneck, depths=(3, 4, 6, 3), stem="deep", shortcut="D"),
    "resnet101d": ResNetSpec(Bottleneck, depths=(3, 4, 23, 3), stem="deep", shortcut="D"),
    "resnet18_a": ResNetSpec(BasicBlock, depths=(2, 2, 2, 2), shortcut="A"),
    "resnet18_c": ResNetSpec(BasicBlock, depths=(2, 2, 2, 2), shortcut="C"),
    "resnet34_a": ResNetSpec(BasicBlock, depths=(3, 4, 6, 3), shortcut="A"),
    "resnet34_c": ResNetSpec(BasicBlock, depths=(3, 4, 6, 3), shortcut="C"),
    **{f"resnet{depth}_cifar": _cifar(depth) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"resnet{depth}_cifar_b": _cifar(depth, shortcut="B") for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}_cifar_c": _cifar(depth, shortcut="C") for depth in (20, 32, 44, 56, 110)},
    "plain18": ResNetSpec(PlainBasicBlock, depths=(2, 2, 2, 2)),
    "plain34": ResNetSpec(PlainBasicBlock, depths=(3, 4, 6, 3)),
    **{f"plain{depth}_cifar": _cifar(depth, PlainBasicBlock) for depth in (20, 32, 44, 56)},
}
