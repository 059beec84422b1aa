"""segmentation-models-pytorch: `smp.Unet("resnet_backbone-resnet50")`, and likewise FPN, DeepLabV3Plus and others.

Key names are those of smp's own resnets, so their pretrained files load (`encoder_weights="imagenet"`). For other files
use `encoder_weights=None` and `load_weights(model.encoder, file, source=...)`. smp's constructor passes no settings to
an encoder: freeze stages afterwards, with `model.encoder.freeze(2)` for the stem and C2.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import InvalidValue
from ..specs import RESNETS
from .parts import IMAGENET_NETS, FeatureBody

LEVELS = ("c1", "c2", "c3", "c4", "c5")


class SmpEncoder(FeatureBody):
    """An encoder for smp's decoders.

    Args:
        net: a row of `RESNETS`.
        depth: number of levels, 1 (C1) to 5 (C1..C5).
        output_stride: stride of the deepest level that a model requests, 32, 16 or 8; see `make_dilated`.

    Raises:
        InvalidValue: depth outside 1..5.
    """

    # smp's models read these before they are scripted, exported or compiled
    _is_torch_scriptable = False
    _is_torch_exportable = _is_torch_compilable = True

    def __init__(self, net: str, depth: int = 5, output_stride: int = 32) -> None:
        if not 1 <= depth <= 5:
            raise InvalidValue(f"depth={depth}: give 1 (C1) to 5 (C1..C5)")
        super().__init__(RESNETS[net], norm="bn", out_levels=LEVELS[:depth])
        self._depth, self._output_stride = depth, output_stride
        self._in_channels = 3

    @property
    def out_channels(self) -> list[int]:
        """Channels of the image and of every level."""
        return [self._in_channels, *(spec.channels for spec in self.feature_specs.values())]

    @property
    def output_stride(self) -> int:
        """Stride of the deepest level, in pixels of the image."""
        return int(min(self._output_stride, 2**self._depth))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute the levels.

        Args:
            pixels: (N, C, H, W), normalised.

        Returns:
            The image itself, C1, C2, ...: depth + 1 tensors (N, channels, ceil(H / stride), ceil(W / stride)).
        """
        return [pixels, *self.levels(pixels).values()]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Change the number of input channels by smp's rule.

        Args:
            in_channels: channels of the images.
            pretrained: sum or repeat the weights of the first convolution; False for initial values.
        """
        from segmentation_models_pytorch.encoders._utils import patch_first_conv

        if in_channels != self._in_channels:
            patch_first_conv(self, in_channels, default_in_channels=self._in_channels, pretrained=pretrained)
            self._in_channels = in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Replace the strides of the deepest stages by dilation of their 3x3 convolutions.

        Args:
            output_stride: stride of C4 and C5 afterwards: 16 dilates C5, 8 dilates C4 and C5.

        Raises:
            InvalidValue: another stride.
        """
        if output_stride not in (8, 16):
            raise InvalidValue(f"output_stride={output_stride}: give 8 or 16")
        for level, name in self._stages:
            rate = 2 ** (LEVELS.index(level) + 1) // output_stride
            if rate > 1:
                _dilate(getattr(self, name), rate)
        self._output_stride = output_stride


def _dilate(stage: nn.Module, rate: int) -> None:
    """Give every convolution of a stage stride 1, and its 3x3 convolutions a dilation."""
    for block in stage.modules():
        for name, part in block.named_children():
            if isinstance(part, nn.Conv2d):
                part.stride = (1, 1)
                if part.kernel_size == (3, 3):
                    part.dilation = part.padding = (rate, rate)
            elif isinstance(part, nn.AvgPool2d):  # the stride of shortcut D
                setattr(block, name, nn.Identity())


def register() -> None:
    """Add `resnet_backbone-<net>` for every net with C2..C5, with smp's pretrained files of the net of that name."""
    from segmentation_models_pytorch.encoders import encoders

    for net in IMAGENET_NETS:
        settings = encoders.get(net, {}).get("pretrained_settings", {})
        encoders.setdefault(
            f"resnet_backbone-{net}", {"encoder": SmpEncoder, "pretrained_settings": settings, "params": {"net": net}}
        )
