"""as_backbone: models of timm and torchvision, or any other source of feature maps, as backbones for `heads`.

`build_detector(recipe, backbone=...)` takes any module that has `feature_specs` and returns a dict of levels.
`as_backbone` wraps a module that returns a list or a dict of feature maps: timm's `features_only` models, torchvision's
`IntermediateLayerGetter` and feature extractors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from .errors import InvalidType, InvalidValue
from .preprocess import Preprocess
from .protocols import FeatureSpec

PROBE = (256, 320)  # height and width of the blank image: multiples of 64, so that all strides up to 64 divide them
BY_STRIDE = {2: "c1", 4: "c2", 8: "c3", 16: "c4", 32: "c5", 64: "c6"}


class AdaptedBackbone(nn.Module):
    """A module with the interface of a `Backbone`; made by `as_backbone`.

    Nothing is frozen here. Choose what trains on the module itself, with `requires_grad_` or
    `timm.utils.freeze_batch_norm_2d`.

    Args:
        body: the module that computes the feature maps.
        specs: level -> channels and stride, in the order of the module's outputs.
        channels_last: whether the module returns (N, h, w, C) instead of (N, C, h, w).
        pixels: how images must be normalised for the module's weights.

    Attributes:
        feature_specs: level -> channels and stride.
        preprocess: how images must be normalised for the weights.
    """

    def __init__(
        self, body: nn.Module, specs: Mapping[str, FeatureSpec], channels_last: bool, pixels: Preprocess
    ) -> None:
        super().__init__()
        self.body, self.feature_specs, self.preprocess = body, dict(specs), pixels
        self._channels_last = channels_last

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the feature levels.

        Args:
            pixels: (N, 3, H, W), normalised.

        Returns:
            Level -> (N, channels, ceil(H / stride), ceil(W / stride)).
        """
        maps = _maps(self.body(pixels), self._channels_last)
        return dict(zip(self.feature_specs, maps))


def as_backbone(
    module: nn.Module, *, levels: Sequence[str] | None = None, preprocess: Preprocess | None = None
) -> AdaptedBackbone:
    """Wrap a module that returns feature maps as a backbone for the detectors of `heads`.

    Channels and strides are measured: the module runs once on a blank image, in inference mode. If it publishes them
    (timm's `feature_info`), both must agree.

    Args:
        module: a module that maps (N, 3, H, W) to a list or a dict of feature maps, fine to coarse.
        levels: names of the levels in the order of the module's outputs. By default the stride gives the name: "c2" at
            stride 4, ... "c5" at stride 32.
        preprocess: how images must be normalised for the weights. By default mean and std of timm's `pretrained_cfg`,
            or of ImageNet if the module has none.

    Returns:
        The backbone.

    Raises:
        InvalidValue: the module does not return feature maps, publishes other channels or strides than it returns, or
            two of its levels would have the same name.
    """
    channels_last = str(getattr(module, "output_fmt", "NCHW")).rpartition(".")[2] == "NHWC"
    try:
        maps = _maps(probe(module), channels_last)
    except Exception as error:  # any exception that a foreign module may raise
        raise InvalidValue(
            f"{type(module).__name__} gave no feature maps for an image of {PROBE[0]}x{PROBE[1]} ({error}): it must "
            "take any size (timm: img_size=..., strict_img_size=False) and return a list or dict of maps"
        ) from error
    measured = [_measure(feature_map) for feature_map in maps]
    published = _published_specs(module)
    if published is not None and published != measured:
        raise InvalidValue(
            f"{type(module).__name__} publishes {published}, but gives {measured}: correct its feature_info"
        )
    names = list(levels) if levels is not None else [BY_STRIDE.get(spec.stride, "") for spec in measured]
    if len(names) != len(measured) or len(set(names)) != len(names) or not all(names):
        raise InvalidValue(
            f"{type(module).__name__} gives {len(measured)} maps of strides {[spec.stride for spec in measured]}, "
            f"named {names}: give each its own name with levels=[...]"
        )
    return AdaptedBackbone(module, dict(zip(names, measured)), channels_last, preprocess or _preprocess_of(module))


def check_backbone(backbone: nn.Module) -> None:
    """Check that a module returns the levels that its `feature_specs` publish.

    The module runs once on a blank image. One that `as_backbone` made was measured then and is not run again.

    Args:
        backbone: the module.

    Raises:
        InvalidValue: no `feature_specs`, no dict of levels, or a level with other channels or another stride.
    """
    if isinstance(backbone, AdaptedBackbone):
        return
    specs = getattr(backbone, "feature_specs", None)
    name = type(backbone).__name__
    if not isinstance(specs, Mapping) or not specs:
        raise InvalidValue(
            f"{name} has no feature_specs (level -> FeatureSpec): wrap it with resnet_backbone.adapt.as_backbone"
        )
    outputs = probe(backbone)
    if not isinstance(outputs, Mapping):
        raise InvalidValue(
            f"{name} gives a {type(outputs).__name__}, a backbone gives a dict of levels: wrap it with "
            "resnet_backbone.adapt.as_backbone"
        )
    if missing := [level for level in specs if level not in outputs]:
        raise InvalidValue(
            f"{name} publishes {list(specs)}, but does not give {missing}: it gives {list(outputs)}; correct its "
            "feature_specs"
        )
    for level, spec in specs.items():
        output = outputs[level]
        measured = _measure(output) if isinstance(output, Tensor) and output.ndim == 4 else None
        if measured != FeatureSpec(spec.channels, spec.stride):
            raise InvalidValue(
                f"{name} publishes {level} with {spec.channels} channels at stride {spec.stride}, but gives "
                f"{measured}: correct its feature_specs"
            )


@torch.no_grad()
def probe(module: nn.Module) -> Any:
    """Run a module on a blank image, in inference mode; its modes, parameters and buffers do not change.

    Args:
        module: the module.

    Returns:
        What it returns for (1, 3, 256, 320) zeros, on its own device and in its own precision.
    """
    parameter = next(module.parameters(), torch.empty(0))
    with _in_eval_mode(module):
        return module(torch.zeros(1, 3, *PROBE, device=parameter.device, dtype=parameter.dtype))


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _maps(outputs: Any, channels_last: bool) -> list[Tensor]:
    """The outputs of a module as a list of (N, C, h, w)."""
    maps = list(outputs.values() if isinstance(outputs, Mapping) else outputs)
    if not all(isinstance(feature_map, Tensor) and feature_map.ndim == 4 for feature_map in maps):
        raise InvalidType("not all of its outputs are maps of four dimensions")
    return [feature_map.permute(0, 3, 1, 2) for feature_map in maps] if channels_last else maps


def _measure(feature_map: Tensor) -> FeatureSpec:
    """Channels and stride of the blank image's feature map.

    Stride 0: height and width were reduced by different factors, or by a factor that is no integer.
    """
    rows, columns = feature_map.shape[-2:]
    (stride_y, rest_y), (stride_x, rest_x) = divmod(PROBE[0], rows), divmod(PROBE[1], columns)
    same = stride_y == stride_x and not rest_y and not rest_x
    return FeatureSpec(feature_map.shape[1], stride_y if same else 0)


def _published_specs(module: nn.Module) -> list[FeatureSpec] | None:
    """Channels and strides in timm's `feature_info`; None if the module has none."""
    info: Any = getattr(module, "feature_info", None)
    if not (hasattr(info, "channels") and hasattr(info, "reduction")):
        return None
    return [FeatureSpec(*pair) for pair in zip(info.channels(), info.reduction())]


def _preprocess_of(module: nn.Module) -> Preprocess:
    """Mean and std of timm's `pretrained_cfg`; ImageNet's if the module has none."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    if not {"mean", "std"} <= set(config):
        return Preprocess()
    return Preprocess(mean=cast(Any, tuple(config["mean"])), std=cast(Any, tuple(config["std"])))
