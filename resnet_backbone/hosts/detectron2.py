"""detectron2: `resnet_backbone` and `resnet_backbone_fpn` in BACKBONE_REGISTRY, for yaml and LazyConfig.

The builders read detectron2's own keys (MODEL.RESNETS, MODEL.BACKBONE.FREEZE_AT, MODEL.FPN); values that this project
does not support are refused. State dicts have detectron2's key names, so its checkpoints and MSRA's load through
`DetectionCheckpointer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..backbone import ResNetBody
from ..errors import InvalidValue
from ..specs import RESNETS, ResNetSpec
from ..weights.keymaps import DETECTRON2

NORMS = {"FrozenBN": "frozen_bn", "BN": "bn", "SyncBN": "sync_bn", "nnSyncBN": "sync_bn", "GN": "gn"}
LEVELS = {"stem": "stem", "res2": "c2", "res3": "c3", "res4": "c4", "res5": "c5"}


class Detectron2ResNet(ResNetBody):
    """A detectron2 `Backbone`.

    Args:
        net: a row of `RESNETS`, or a spec.
        out_features: the levels that `forward` returns, some of "stem", "res2" (C2), ... "res5" (C5).
        freeze_at: 0 nothing, 1 the stem, 2 the stem and res2, ... 5 everything.
        norm: "FrozenBN", "BN", "SyncBN", "nnSyncBN" or "GN".
        stride_in_1x1: whether the first 1x1 convolution of a bottleneck carries the stride; None for the spec's own.

    Raises:
        InvalidValue: an unknown norm or level, or freeze_at outside 0..5.
    """

    def __init__(
        self,
        net: str | ResNetSpec = "resnet50",
        *,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        freeze_at: int = 2,
        norm: str = "FrozenBN",
        stride_in_1x1: bool | None = None,
    ) -> None:
        from detectron2.modeling import Backbone

        Backbone.register(type(self))  # detectron2's FPN and builders check isinstance(..., Backbone)
        spec = RESNETS[net] if isinstance(net, str) else net
        if stride_in_1x1 is not None and spec.block.expansion > 1:
            spec = replace(spec, stride_on="1x1" if stride_in_1x1 else "3x3")
        if norm not in NORMS:
            raise InvalidValue(f"norm {norm!r} is not supported: give one of {', '.join(NORMS)}")
        if unknown := [name for name in out_features if name not in LEVELS]:
            raise InvalidValue(f"out_features {unknown} are unknown: give some of {', '.join(LEVELS)}")
        levels = [LEVELS[name] for name in out_features]
        super().__init__(spec, norm=NORMS[norm], out_levels=levels, frozen_stages=freeze_at)
        names = {level: name for name, level in LEVELS.items()}
        self._names = {level: names[level] for level in self.out_levels}
        module: Any = self  # torch does not annotate these methods
        module.register_state_dict_post_hook(_to_detectron2)
        module.register_load_state_dict_pre_hook(_from_detectron2)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the levels of `out_features`.

        Args:
            pixels: (N, 3, H, W), normalised.

        Returns:
            detectron2's name -> (N, channels, ceil(H / stride), ceil(W / stride)).
        """
        return {self._names[level]: features for level, features in self.levels(pixels).items()}

    def output_shape(self) -> dict[str, Any]:
        """detectron2's name -> `ShapeSpec` with channels and stride."""
        from detectron2.layers import ShapeSpec

        specs = self.feature_specs
        return {
            name: ShapeSpec(channels=specs[level].channels, stride=specs[level].stride)
            for level, name in self._names.items()
        }

    @property
    def size_divisibility(self) -> int:
        """0: images of any size; a pyramid on top of the net has a requirement of its own."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """No constraints on the padding of images."""
        return {}

    def freeze(self, stages: int = 0) -> Detectron2ResNet:  # type: ignore[override]
        """Freeze the first stages, as detectron2's `ResNet.freeze`.

        Args:
            stages: 0 nothing, 1 the stem, 2 the stem and res2, ... 5 everything.

        Returns:
            The net itself.
        """
        super().freeze(stages)
        return self


def _to_detectron2(body: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename the keys of a state dict that is written."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + DETECTRON2(key.removeprefix(prefix))] = state.pop(key)


def _from_detectron2(body: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of a state dict that is loaded."""
    native_keys = [*dict(body.named_parameters()), *dict(body.named_buffers())]
    native = {DETECTRON2(key): key for key in native_keys}
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name in native:
            state[prefix + native[name]] = state.pop(key)


def _spec_of(cfg: Any) -> ResNetSpec:
    """The spec that MODEL.RESNETS describes."""
    resnets = cfg.MODEL.RESNETS
    spec = RESNETS.get(f"resnet{resnets.DEPTH}")
    if spec is None:
        raise InvalidValue(f"MODEL.RESNETS.DEPTH={resnets.DEPTH} is not supported: give 18, 34, 50, 101 or 152")
    spec = replace(spec, c5_dilation=resnets.RES5_DILATION)
    supported = {
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
        "STEM_OUT_CHANNELS": spec.stem_width,
        "RES2_OUT_CHANNELS": spec.widths[0] * spec.block.expansion,
    }
    for key, value in supported.items():
        if resnets[key] != value:
            raise InvalidValue(
                f"MODEL.RESNETS.{key}={resnets[key]} is not supported: set it to {value} for a ResNet-{resnets.DEPTH}"
            )
    if any(resnets.DEFORM_ON_PER_STAGE):
        raise InvalidValue(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable convolutions are not supported, set every stage to False"
        )
    return spec


def build_resnet(cfg: Any, input_shape: Any = None) -> Detectron2ResNet:
    """Build the backbone for MODEL.BACKBONE.NAME "resnet_backbone".

    Args:
        cfg: detectron2's configuration.
        input_shape: `ShapeSpec` of the images.

    Returns:
        The backbone.

    Raises:
        InvalidValue: a value that this project does not support, or images that do not have three channels.
    """
    if input_shape is not None and input_shape.channels != 3:
        raise InvalidValue(
            f"images of {input_shape.channels} channels are not supported: give MODEL.PIXEL_MEAN and MODEL.PIXEL_STD "
            "three values"
        )
    return Detectron2ResNet(
        _spec_of(cfg),
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=cfg.MODEL.RESNETS.NORM,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    )


def build_resnet_fpn(cfg: Any, input_shape: Any = None) -> nn.Module:
    """Build the backbone with detectron2's own pyramid, P2..P6, for MODEL.BACKBONE.NAME "resnet_backbone_fpn".

    Args:
        cfg: detectron2's configuration.
        input_shape: `ShapeSpec` of the images.

    Returns:
        detectron2's `FPN`.

    Raises:
        InvalidValue: as for `build_resnet`.
    """
    from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

    settings = cfg.MODEL.FPN
    pyramid: nn.Module = FPN(
        bottom_up=build_resnet(cfg, input_shape),
        in_features=settings.IN_FEATURES,
        out_channels=settings.OUT_CHANNELS,
        norm=settings.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=settings.FUSE_TYPE,
    )
    return pyramid


def register() -> None:
    """Add `resnet_backbone` and `resnet_backbone_fpn` to BACKBONE_REGISTRY."""
    from detectron2.modeling import BACKBONE_REGISTRY

    builders: Mapping[str, Any] = {"resnet_backbone": build_resnet, "resnet_backbone_fpn": build_resnet_fpn}
    for name, builder in builders.items():
        if name not in BACKBONE_REGISTRY:
            BACKBONE_REGISTRY._do_register(name, builder)
