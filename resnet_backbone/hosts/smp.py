"""segmentation-models-pytorch: `smp.Unet("resnet_backbone-resnet50")`, and FPN, DeepLabV3Plus, ...

Key names are those of its own resnets, whose pretrained files (`encoder_weights="imagenet"`) therefore load. Others:
`encoder_weights=None`, then `load_weights(model.encoder, file, source=...)`. Its constructor hands an encoder no
settings: `model.encoder.freeze(2)` freezes the stem and C2 afterwards.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InvalidValue
from ..specs import RESNETS
from .parts import IMAGENET_NETS, LevelsOfANet

LEVELS = ("c1", "c2", "c3", "c4", "c5")


class SmpEncoder(LevelsOfANet):
    """pixels -> [pixels, c1, c2, ...], depth + 1 of them, as smp's decoders read them. net: a row of `RESNETS`.

    depth: 1 to 5. Raises ValueError for another.
    """

    # what smp's models ask of an encoder before they script, export or compile it
    _is_torch_scriptable = False
    _is_torch_exportable = _is_torch_compilable = True

    def __init__(self, net: str, depth: int = 5, output_stride: int = 32) -> None:
        if not 1 <= depth <= 5:
            raise InvalidValue(f"depth={depth}: give 1 (C1) to 5 (C5)")
        super().__init__(RESNETS[net], norm="bn", out_levels=LEVELS[:depth])
        self._depth, self._output_stride = depth, output_stride
        self._in_channels = 3

    @property
    def out_channels(self) -> list[int]:
        return [self._in_channels, *(spec.channels for spec in self.feature_specs.values())]

    @property
    def output_stride(self) -> int:
        return min(self._output_stride, 2**self._depth)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [pixels, *self.levels(pixels).values()]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """smp's rule for other channels than three: pretrained weights are summed or repeated."""
        from segmentation_models_pytorch.encoders._utils import patch_first_conv

        if in_channels != self._in_channels:
            patch_first_conv(self, in_channels, default_in_channels=self._in_channels, pretrained=pretrained)
            self._in_channels = in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Keep C4 or C5 at stride 8 or 16, with dilated 3x3 in place of strides. Raises ValueError for another."""
        if output_stride not in (8, 16):
            raise InvalidValue(f"output_stride={output_stride}: give 8 or 16")
        for level, name in self._stages:
            rate = 2 ** (LEVELS.index(level) + 1) // output_stride
            if rate > 1:
                _dilate(getattr(self, name), rate)
        self._output_stride = output_stride


def _dilate(stage: nn.Module, rate: int) -> None:
    for block in stage.modules():
        for name, part in block.named_children():
            if isinstance(part, nn.Conv2d):
                part.stride = (1, 1)
                if part.kernel_size == (3, 3):
                    part.dilation = part.padding = (rate, rate)
            elif isinstance(part, nn.AvgPool2d):  # shortcut D averages where it strides
                setattr(block, name, nn.Identity())


def register() -> None:
    """`resnet_backbone-<net>` for every net with C2..C5, with smp's own files of the net of that name."""
    from segmentation_models_pytorch.encoders import encoders

    for net in IMAGENET_NETS:
        settings = encoders.get(net, {}).get("pretrained_settings", {})
        encoders.setdefault(
            f"resnet_backbone-{net}", {"encoder": SmpEncoder, "pretrained_settings": settings, "params": {"net": net}}
        )
