"""The architecture of a ResNet as data: every depth is a row of `RESNETS`, not a subclass.

Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition* (CVPR 2016): Table 1 (ImageNet nets),
section 3.3 (plain nets and shortcuts A, B, C), section 4.2 (CIFAR nets: 6n + 2 layers of widths 16, 32, 64).
Shortcut D and the deep stem: He et al., *Bag of Tricks* (arXiv:1812.01187), figure 2, as in timm's `resnet50d`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .blocks import BasicBlock, Bottleneck, PlainBasicBlock, Shortcut
from .errors import InvalidValue, did_you_mean

BlockType = type[BasicBlock] | type[Bottleneck] | type[PlainBasicBlock]


@dataclass(frozen=True)
class StageSpec:
    """One stage of a net (`layer1` ... `layer4`).

    Attributes:
        level: name of its output, "c2" ... "c5".
        blocks: number of blocks.
        width: channels of the 3x3 convolutions.
        stride: stride of the first block; the others have 1.
        dilation: dilation of every 3x3 convolution.
    """

    level: str
    blocks: int
    width: int
    stride: int
    dilation: int


@dataclass(frozen=True)
class ResNetSpec:
    """The architecture of a net.

    Attributes:
        block: the class of the blocks: `BasicBlock`, `Bottleneck` or `PlainBasicBlock`.
        depths: number of blocks of every stage; one to four stages.
        widths: channels of the 3x3 convolutions of every stage. The stem has as many channels as the first stage.
        stem: "imagenet", a 7x7 convolution and max pooling; "deep", three 3x3 convolutions and max pooling; "cifar",
            one 3x3 convolution without pooling.
        shortcut: "A", zero-padded identity; "B", a 1x1 convolution where the shape changes; "C", a 1x1 convolution in
            every block; "D", as "B" with the stride in an average pooling before the convolution.
        stride_on: the convolution of a bottleneck that carries the stride: "3x3" (torchvision, "v1.5") or "1x1" (the
            paper, Caffe, detectron2's MSRA weights).
        c5_dilation: 2 keeps C5 at the stride of C4 (DC5) and dilates every 3x3 convolution of the stage, as detectron2
            does; torchvision leaves the first one undilated. 1 is an ordinary C5.
        zero_init_last_norm: whether the last norm of every residual branch starts at zero (Goyal et al.,
            arXiv:1706.02677, section 5.1).

    Raises:
        InvalidValue: a value that no code supports, or values that contradict one another.
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
                f"depths {self.depths} and widths {self.widths} must have the same length, 1 to 4: give one entry "
                "per stage"
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
                "zero_init_last_norm gives a plain net zero outputs, because it has no shortcuts: leave it out"
            )
        if self.c5_dilation != 1 and len(self.depths) < 4:
            raise InvalidValue(
                f"c5_dilation={self.c5_dilation} needs a fourth stage, this net has {len(self.depths)}: leave it out"
            )

    @property
    def stem_width(self) -> int:
        """Channels of the stem's output."""
        return self.widths[0]

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """The stages, from C2."""
        stages = []
        for index, (blocks, width) in enumerate(zip(self.depths, self.widths)):
            dilation = self.c5_dilation if index == 3 else 1
            stride = 1 if index == 0 or dilation > 1 else 2
            stages.append(StageSpec(f"c{index + 2}", blocks, width, stride, dilation))
        return tuple(stages)


def find_spec(net: str | ResNetSpec) -> ResNetSpec:
    """Look up a spec by its name.

    Args:
        net: a row of `RESNETS`, or a spec, which is returned as it is.

    Returns:
        The spec.

    Raises:
        InvalidValue: an unknown name; the message gives the nearest.
    """
    if isinstance(net, str) and net not in RESNETS:
        raise InvalidValue(f"no ResNet is called {net!r}: {did_you_mean(net, RESNETS)}")
    return RESNETS[net] if isinstance(net, str) else net


def _cifar(depth: int, block: BlockType = BasicBlock, shortcut: Shortcut = "A") -> ResNetSpec:
    n = (depth - 2) // 6
    return ResNetSpec(block, depths=(n, n, n), widths=(16, 32, 64), stem="cifar", shortcut=shortcut)


# names without a letter are the published nets: torchvision's have shortcut B, the CIFAR nets have shortcut A
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
