"""detectron2: `resnet_backbone` and `resnet_backbone_fpn` in BACKBONE_REGISTRY, for yaml and LazyConfig.

The yaml's own keys are read (MODEL.RESNETS, MODEL.BACKBONE.FREEZE_AT, MODEL.FPN); a value that our nets do not have is
refused. State dicts carry detectron2's names: its checkpoints and MSRA's load through its own checkpointer.
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
    """A detectron2 `Backbone`: `forward` gives res2 ... res5, `output_shape` their `ShapeSpec`s.

    Args: net: a row of `RESNETS`, or a spec; out_features, freeze_at and norm (its names) as detectron2's `ResNet` has
    them; stride_in_1x1: None for the spec's own. Raises ValueError for names that are not known.
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

        Backbone.register(type(self))  # its FPN and its builders ask isinstance
        spec = RESNETS[net] if isinstance(net, str) else net
        if stride_in_1x1 is not None and spec.block.expansion > 1:
            spec = replace(spec, stride_on="1x1" if stride_in_1x1 else "3x3")
        if norm not in NORMS:
            raise InvalidValue(f"norm {norm!r} is not here: give one of {', '.join(NORMS)}")
        if missing := [name for name in out_features if name not in LEVELS]:
            raise InvalidValue(f"out_features {missing} are not here: give some of {', '.join(LEVELS)}")
        levels = [LEVELS[name] for name in out_features]
        super().__init__(spec, norm=NORMS[norm], out_levels=levels, frozen_stages=freeze_at)
        ours = {level: name for name, level in LEVELS.items()}
        self._names = {level: ours[level] for level in self.out_levels}
        self.register_state_dict_post_hook(_to_detectron2)
        self.register_load_state_dict_pre_hook(_from_detectron2)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {self._names[level]: x for level, x in self.levels(pixels).items()}

    def output_shape(self) -> dict[str, Any]:
        from detectron2.layers import ShapeSpec

        specs = self.feature_specs
        return {
            name: ShapeSpec(channels=specs[level].channels, stride=specs[level].stride)
            for level, name in self._names.items()
        }

    @property
    def size_divisibility(self) -> int:
        """0: any size will do; a pyramid on top has its own."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}

    def freeze(self, stages: int = 0) -> Detectron2ResNet:  # type: ignore[override]
        """detectron2's freeze_at: 1 the stem, 2 the stem and res2, ..."""
        super().freeze(stages)
        return self


def _to_detectron2(body: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + DETECTRON2(key.removeprefix(prefix))] = state.pop(key)


def _from_detectron2(body: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = [*dict(body.named_parameters()), *dict(body.named_buffers())]
    ours = {DETECTRON2(key): key for key in own}
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if name in ours:
            state[prefix + ours[name]] = state.pop(key)


def _net_of(cfg: Any) -> ResNetSpec:
    """The spec that a yaml's MODEL.RESNETS describes. Raises ValueError for what our nets do not have."""
    asked = cfg.MODEL.RESNETS
    spec = RESNETS.get(f"resnet{asked.DEPTH}")
    if spec is None:
        raise InvalidValue(f"MODEL.RESNETS.DEPTH={asked.DEPTH} is not here: give 18, 34, 50, 101 or 152")
    spec = replace(spec, c5_dilation=asked.RES5_DILATION)
    ours = {
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
        "STEM_OUT_CHANNELS": spec.stem_width,
        "RES2_OUT_CHANNELS": spec.widths[0] * spec.block.expansion,
    }
    for key, value in ours.items():
        if asked[key] != value:
            raise InvalidValue(f"MODEL.RESNETS.{key}={asked[key]} is not here: a ResNet-{asked.DEPTH} has {value}")
    if any(asked.DEFORM_ON_PER_STAGE):
        raise InvalidValue("MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable convolutions are not here, set all to False")
    return spec


def build_resnet(cfg: Any, input_shape: Any = None) -> Detectron2ResNet:
    """The builder behind MODEL.BACKBONE.NAME "resnet_backbone"."""
    if input_shape is not None and input_shape.channels != 3:
        raise InvalidValue(f"images of {input_shape.channels} channels: MODEL.PIXEL_MEAN and PIXEL_STD must have three")
    return Detectron2ResNet(
        _net_of(cfg),
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        norm=cfg.MODEL.RESNETS.NORM,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    )


def build_resnet_fpn(cfg: Any, input_shape: Any = None) -> nn.Module:
    """The builder behind "resnet_backbone_fpn": detectron2's own pyramid, P2..P6."""
    from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

    asked = cfg.MODEL.FPN
    return FPN(
        bottom_up=build_resnet(cfg, input_shape),
        in_features=asked.IN_FEATURES,
        out_channels=asked.OUT_CHANNELS,
        norm=asked.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=asked.FUSE_TYPE,
    )


def register() -> None:
    """See the module's docstring."""
    from detectron2.modeling import BACKBONE_REGISTRY

    builders: Mapping[str, Any] = {"resnet_backbone": build_resnet, "resnet_backbone_fpn": build_resnet_fpn}
    for name, builder in builders.items():
        if name not in BACKBONE_REGISTRY:
            BACKBONE_REGISTRY._do_register(name, builder)
