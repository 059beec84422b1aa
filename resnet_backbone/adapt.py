"""The way back: any module's features as levels for our heads.

`build_detector(recipe, backbone=...)` takes every module with `feature_specs` and `forward -> {"c2": ..., ...}`;
`as_backbone` gives that to timm's `features_only` models, to torchvision's bodies, and to whatever else returns a list
or a dict of feature maps.
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

PROBE = (256, 320)  # height and width: multiples of 64, so that every stride up to it divides them
BY_STRIDE = {2: "c1", 4: "c2", 8: "c3", 16: "c4", 32: "c5", 64: "c6"}


class AdaptedBackbone(nn.Module):
    """A module behind the small protocol: `feature_specs`, `preprocess`, and `forward -> level -> (N, C, h, w)`.

    Made by `as_backbone`. What of the module trains is the caller's to say (`requires_grad_`, or
    `timm.utils.freeze_batch_norm_2d`).
    """

    def __init__(self, body: nn.Module, specs: Mapping[str, FeatureSpec], channels_last: bool, pixels: Preprocess):
        super().__init__()
        self.body, self.feature_specs, self.preprocess = body, dict(specs), pixels
        self._channels_last = channels_last

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = _maps(self.body(pixels), self._channels_last)
        return dict(zip(self.feature_specs, maps))


def as_backbone(
    module: nn.Module, *, levels: Sequence[str] | None = None, preprocess: Preprocess | None = None
) -> AdaptedBackbone:
    """Any module that gives a list or a dict of feature maps, fine to coarse, as a backbone for our heads.

    Channels and strides are measured on a blank image, in eval mode, and must be those that the module publishes where
    it does (timm's `feature_info`). levels: their names in the module's order; by default the stride gives them ("c2"
    at 4, ... "c5" at 32). preprocess: the pixels that the weights know; by default timm's `pretrained_cfg`, or
    ImageNet's. Raises ValueError where the levels cannot be told apart, or are not what the module says of itself.
    """
    last = str(getattr(module, "output_fmt", "NCHW")).rpartition(".")[2] == "NHWC"
    try:
        maps = _maps(probe(module), last)
    except Exception as error:
        raise InvalidValue(
            f"{type(module).__name__} gave no feature maps for an image of {PROBE[0]}x{PROBE[1]} ({error}): it must "
            "take any size (timm: img_size=..., strict_img_size=False) and return a list or dict of maps"
        ) from error
    found = [_measured(x) for x in maps]
    published: Any = getattr(module, "feature_info", None)
    if hasattr(published, "channels") and hasattr(published, "reduction"):
        said = [FeatureSpec(*pair) for pair in zip(published.channels(), published.reduction())]
        if said != found:
            raise InvalidValue(f"{type(module).__name__} publishes {said}, but gives {found}")
    names = list(levels) if levels is not None else [BY_STRIDE.get(spec.stride, "") for spec in found]
    if len(names) != len(found) or len(set(names)) != len(names) or not all(names):
        raise InvalidValue(
            f"{type(module).__name__} gives {len(found)} maps of strides {[spec.stride for spec in found]}, named "
            f"{names}: give each its own name with levels=[...]"
        )
    return AdaptedBackbone(module, dict(zip(names, found)), last, preprocess or _pixels_of(module))


def check_backbone(backbone: nn.Module) -> None:
    """Raises ValueError unless the module gives the levels, channels and strides of its `feature_specs`. One that
    `as_backbone` made was measured then."""
    if isinstance(backbone, AdaptedBackbone):
        return
    specs = getattr(backbone, "feature_specs", None)
    what = type(backbone).__name__
    if not isinstance(specs, Mapping) or not specs:
        raise InvalidValue(
            f"{what} has no feature_specs (level -> FeatureSpec): wrap it with resnet_backbone.adapt.as_backbone"
        )
    given = probe(backbone)
    if not isinstance(given, Mapping):
        raise InvalidValue(f"{what} gives a {type(given).__name__}, a backbone gives a dict of levels: see as_backbone")
    if missing := [level for level in specs if level not in given]:
        raise InvalidValue(f"{what} publishes {list(specs)}, but does not give {missing}: it gives {list(given)}")
    for level, spec in specs.items():
        x = given[level]
        found = _measured(x) if isinstance(x, Tensor) and x.ndim == 4 else None
        if found != FeatureSpec(spec.channels, spec.stride):
            raise InvalidValue(
                f"{what} publishes {level} with {spec.channels} channels at stride {spec.stride}, but gives {found}: "
                "mend its feature_specs"
            )


@torch.no_grad()
def probe(module: nn.Module) -> Any:
    """What the module answers to a blank image; it is left as it was."""
    own = next(module.parameters(), torch.empty(0))
    with _in_eval_mode(module):
        return module(torch.zeros(1, 3, *PROBE, device=own.device, dtype=own.dtype))


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _maps(answer: Any, channels_last: bool) -> list[Tensor]:
    maps = list(answer.values() if isinstance(answer, Mapping) else answer)
    if not all(isinstance(x, Tensor) and x.ndim == 4 for x in maps):
        raise InvalidType("not all of its outputs are maps of four dimensions")
    return [x.permute(0, 3, 1, 2) for x in maps] if channels_last else maps


def _measured(x: Tensor) -> FeatureSpec:
    """Of the blank image's map; stride 0 where height and width shrank differently, or by no whole number."""
    (height, up), (width, left) = (divmod(side, cell) for side, cell in zip(PROBE, x.shape[-2:]))
    return FeatureSpec(x.shape[1], height if height == width and not up and not left else 0)


def _pixels_of(module: nn.Module) -> Preprocess:
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    if not {"mean", "std"} <= set(config):
        return Preprocess()
    return Preprocess(mean=cast(Any, tuple(config["mean"])), std=cast(Any, tuple(config["std"])))
