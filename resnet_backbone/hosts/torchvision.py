"""torchvision: our backbone, under its pyramid or any other, in FasterRCNN, MaskRCNN, RetinaNet, FCOS, KeypointRCNN.

`register("torchvision")` adds `torchvision.models.get_model("resnet_backbone_resnet50")`, the classifier, and
`get_model("resnet_backbone_resnet50_fpn")`, a backbone for its detectors, for every net with C2..C5.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, cast

from torch import Tensor, nn

from ..build import build_backbone, load_weights
from ..classifier import ResNetClassifier
from ..errors import InvalidValue
from ..preprocess import Preprocess
from ..protocols import FeatureSpec
from .parts import IMAGENET_NETS

Weights = str | PathLike[str] | Mapping[str, Tensor] | None


class TorchvisionBackbone(nn.Module):
    """What torchvision's detectors expect: `out_channels`, and levels by the names "0", "1", ..., "pool".

    Args: body: a module with `feature_specs` and `forward -> level -> tensor`; pyramid: from those levels to levels of
    `out_channels` each. Key names are torchvision's (`body.*`, `fpn.*`): its detectors' checkpoints load.
    """

    def __init__(self, body: nn.Module, pyramid: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, pyramid, out_channels
        given = list(cast("Mapping[str, FeatureSpec]", body.feature_specs))
        made = getattr(pyramid, "feature_specs", None)  # torchvision's has none: it keeps the names that it is given
        self._numbers_first = made is None
        pooled = [level for level in made or () if f"c{level[1:]}" not in given]  # p2 is made of c2, p6 of no level
        numbered = given if made is None else [level for level in made if level not in pooled]
        self._names = {level: str(index) for index, level in enumerate(numbered)}
        self._names |= {level: "pool" if len(pooled) == 1 else level for level in pooled}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        levels = self.body(pixels)
        if self._numbers_first:
            return self.fpn(self._named(levels))
        return self._named(self.fpn(levels))

    def _named(self, levels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return OrderedDict((self._names[level], x) for level, x in levels.items())


def torchvision_backbone(
    body: nn.Module, *, pyramid: nn.Module | None = None, channels: int = 256, extra_blocks: nn.Module | None = None
) -> TorchvisionBackbone:
    """A backbone for torchvision's detectors around any module with `feature_specs` (`build_backbone`'s, or
    `as_backbone`'s).

    pyramid: `heads.fpn.FeaturePyramid(body.feature_specs)`, or any module that publishes `feature_specs`; None builds
    torchvision's own, of so many channels, with its extra_blocks (default: max pooling; RetinaNet and FCOS want
    `LastLevelP6P7`). Raises ValueError where the weights know other pixels than torchvision's detectors give (RGB, 0 to
    1), or the pyramid's levels differ in their channels.
    """
    pixels: Preprocess = getattr(body, "preprocess", Preprocess())
    if (pixels.channel_order, pixels.value_range) != ("rgb", 1):
        raise InvalidValue(
            f"these weights know {pixels.channel_order.upper()} pixels of 0 to {pixels.value_range}, torchvision's "
            "detectors give RGB of 0 to 1: take torchvision's or timm's weights"
        )
    if pyramid is None:
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        given = cast("Mapping[str, FeatureSpec]", body.feature_specs)
        widths = [spec.channels for spec in given.values()]
        pyramid = FeaturePyramidNetwork(widths, channels, extra_blocks or LastLevelMaxPool())
        return TorchvisionBackbone(body, pyramid, channels)
    made = {spec.channels for spec in cast("Mapping[str, FeatureSpec]", pyramid.feature_specs).values()}
    if len(made) != 1:
        raise InvalidValue(f"torchvision's detectors read levels of one width, this pyramid gives {sorted(made)}")
    return TorchvisionBackbone(body, pyramid, made.pop())


def _classifier(name: str, *, weights: Weights = None, source: str | None = None, **settings: Any) -> ResNetClassifier:
    """settings: as `ResNetClassifier` has them."""
    net = ResNetClassifier(name, **settings)
    if weights is not None:
        load_weights(net, weights, source=source)
    return net


def _backbone(
    name: str,
    *,
    channels: int = 256,
    extra_blocks: nn.Module | None = None,
    out_levels: Sequence[str] = ("c2", "c3", "c4", "c5"),
    **settings: Any,
) -> TorchvisionBackbone:
    """settings: as `build_backbone` has them."""
    body = build_backbone(name, out_levels=out_levels, **settings)
    return torchvision_backbone(body, channels=channels, extra_blocks=extra_blocks)


def register() -> None:
    """See the module's docstring."""
    from torchvision.models._api import BUILTIN_MODELS, register_model

    for net in IMAGENET_NETS:
        for ending, build in (("", _classifier), ("_fpn", _backbone)):
            name = f"resnet_backbone_{net}{ending}"
            if name not in BUILTIN_MODELS:
                builder = partial(build, net)
                builder.__module__ = __name__  # list_models() asks every builder for it
                register_model(name)(builder)
