"""mmdetection, and other projects that build from mmengine's `MODELS`: `dict(type="ResNetBackbone", depth=50, ...)`.

Key names are those of mmdetection's ResNet, so checkpoints of whole detectors load through its runner. Settings have
mmdetection's names and meaning; values that this project does not support are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..backbone import ResNetBody
from ..build import load_weights
from ..errors import InvalidValue
from ..specs import RESNETS
from .parts import imagenet_net, set_input_channels


class MMResNet(ResNetBody):
    """A backbone with the settings of mmdetection's `ResNet`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: channels of the images.
        num_stages: 4.
        out_indices: the levels that `forward` returns, 0 (C2) to 3 (C5).
        style: "pytorch", stride on the 3x3 convolution, or "caffe", stride on the first 1x1.
        frozen_stages: -1 nothing, 0 the stem, 1 the stem and C2, ... (`ResNetBackbone` counts one more).
        norm_cfg: type ("BN", "SyncBN" or "GN"), requires_grad and eps of the norms; None for batch norm.
        norm_eval: whether batch norms always use running statistics.
        zero_init_residual: whether the last norm of every residual branch starts at zero.
        init_cfg: `dict(type="Pretrained", checkpoint=..., prefix=...)`, which `init_weights()` loads strictly.

    Raises:
        InvalidValue: a value that this project does not support.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        in_channels: int = 3,
        num_stages: int = 4,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        frozen_stages: int = -1,
        norm_cfg: Mapping[str, Any] | None = None,
        norm_eval: bool = True,
        zero_init_residual: bool = True,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        spec = RESNETS[imagenet_net(f"resnet{depth}")]
        _check_settings(num_stages, out_indices, style, init_cfg)
        if style == "caffe" and spec.block.expansion > 1:
            spec = replace(spec, stride_on="1x1")
        spec = replace(spec, zero_init_last_norm=zero_init_residual)
        super().__init__(
            spec,
            norm=_norm(norm_cfg or {"type": "BN", "requires_grad": True}, norm_eval),
            norm_eps=float((norm_cfg or {}).get("eps", 1e-5)),
            out_levels=[f"c{index + 2}" for index in out_indices],
            frozen_stages=frozen_stages + 1,
        )
        set_input_channels(self, in_channels)
        self.init_cfg = None if init_cfg is None else dict(init_cfg)
        self.is_init = False

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Compute the levels of `out_indices`.

        Args:
            pixels: (N, C, H, W), normalised.

        Returns:
            One (N, channels, ceil(H / stride), ceil(W / stride)) per index, fine to coarse.
        """
        return tuple(self.levels(pixels).values())

    def init_weights(self) -> None:
        """Load the checkpoint of `init_cfg` strictly; mmengine's own loading skips keys that do not fit.

        The checkpoint is a path or anything else that mmengine's loader accepts ("torchvision://resnet50", a URL).

        Raises:
            WeightMismatch: the weights do not fit.
        """
        self.is_init = True
        if self.init_cfg is None:
            return
        from mmengine.runner.checkpoint import CheckpointLoader

        content = CheckpointLoader.load_checkpoint(self.init_cfg["checkpoint"], map_location="cpu", logger="current")
        state = content.get("state_dict", content)
        prefix = self.init_cfg.get("prefix", "")
        prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        load_weights(self, self.to_native_keys(state).state)


def _check_settings(
    num_stages: int, out_indices: Sequence[int], style: str, init_cfg: Mapping[str, Any] | None
) -> None:
    """Refuse values that mmdetection's ResNet has and this project does not support."""
    if num_stages != 4:
        raise InvalidValue(
            f"num_stages={num_stages} is not supported: leave it at 4 and choose the levels with out_indices; deeper "
            "stages are not built"
        )
    if style not in ("pytorch", "caffe"):
        raise InvalidValue(f"style={style!r} is unknown: give 'pytorch' or 'caffe'")
    if not all(0 <= index <= 3 for index in out_indices):
        raise InvalidValue(f"out_indices={tuple(out_indices)}: give some of 0 (C2), 1, 2, 3 (C5)")
    if init_cfg is not None and init_cfg.get("type") != "Pretrained":
        raise InvalidValue(
            f"init_cfg of type {init_cfg.get('type')!r} is not supported: give type 'Pretrained', or leave init_cfg out"
        )


def _norm(cfg: Mapping[str, Any], norm_eval: bool) -> str:
    """The name in `NORMS` of mmdetection's norm_cfg and norm_eval."""
    unknown = set(cfg) - {"type", "requires_grad", "eps", "num_groups"}
    if unknown or cfg.get("num_groups", 32) != 32:
        raise InvalidValue(
            f"norm_cfg={dict(cfg)} has settings that are not supported: give type, requires_grad and eps only"
        )
    trains = cfg.get("requires_grad", True)
    if cfg["type"] in ("BN", "BN2d", "SyncBN") and norm_eval:
        return "bn_eval" if trains else "frozen_bn"
    if not trains:
        raise InvalidValue(
            f"norm_cfg={dict(cfg)} with norm_eval={norm_eval} freezes scale and shift but not the statistics, which is "
            "not supported: set requires_grad=True, or type 'BN' with norm_eval=True"
        )
    if cfg["type"] not in ("BN", "BN2d", "SyncBN", "GN"):
        raise InvalidValue(f"norm_cfg of type {cfg['type']!r} is not supported: give 'BN', 'SyncBN' or 'GN'")
    return {"SyncBN": "sync_bn", "GN": "gn"}.get(cfg["type"], "bn")


def register() -> None:
    """Add "ResNetBackbone" to mmengine's root registry, in which the registries of all projects look too."""
    from mmengine.registry import MODELS

    if MODELS.module_dict.get("ResNetBackbone") is not MMResNet:
        MODELS.register_module(name="ResNetBackbone", module=MMResNet)
