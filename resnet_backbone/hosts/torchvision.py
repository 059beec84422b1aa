"""torchvision: our backbone in FasterRCNN, MaskRCNN, RetinaNet, FCOS and KeypointRCNN.

For every net with C2..C5, `register("torchvision")` adds the classifier,
`torchvision.models.get_model("resnet_backbone_resnet50")`, and a backbone for the detectors,
`get_model("resnet_backbone_resnet50_fpn")`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from ..build import build_backbone, load_weights
from ..classifier import ResNetClassifier
from ..errors import InvalidValue
from ..preprocess import Preprocess
from ..protocols import FeatureSpec
from ..weights.read import Weights
from .parts import IMAGENET_NETS


class TorchvisionBackbone(nn.Module):
    """A body and a pyramid with the interface of torchvision's `BackboneWithFPN`.

    Key names are torchvision's (`body.*`, `fpn.*`): checkpoints of its detectors load.

    Args:
        body: a module with `feature_specs` that returns level -> tensor.
        pyramid: a module that maps those levels to levels of `out_channels` each.
        out_channels: channels of every level that the pyramid returns.

    Attributes:
        out_channels: channels of every level; torchvision's detectors read it.
    """

    def __init__(self, body: nn.Module, pyramid: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, pyramid, out_channels
        body_levels = list(cast("Mapping[str, FeatureSpec]", body.feature_specs))
        levels = getattr(pyramid, "feature_specs", None)
        self._renames_input = levels is None  # torchvision's pyramid publishes nothing and keeps the names of its input
        # P2 is computed from C2; P6 is pooled from P5 and has no counterpart in the body
        pooled = [level for level in levels or () if f"c{level[1:]}" not in body_levels]
        numbered = body_levels if levels is None else [level for level in levels if level not in pooled]
        self._names = {level: str(index) for index, level in enumerate(numbered)}
        self._names |= {level: "pool" if len(pooled) == 1 else level for level in pooled}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the levels of the pyramid.

        Args:
            pixels: (N, 3, H, W), normalised.

        Returns:
            "0", "1", ... fine to coarse, and "pool" -> (N, out_channels, h, w).
        """
        levels = self.body(pixels)
        if self._renames_input:
            pyramid: dict[str, Tensor] = self.fpn(self._named(levels))
            return pyramid
        return self._named(self.fpn(levels))

    def _named(self, levels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return OrderedDict((self._names[level], features) for level, features in levels.items())


def torchvision_backbone(
    body: nn.Module, *, pyramid: nn.Module | None = None, channels: int = 256, extra_blocks: nn.Module | None = None
) -> TorchvisionBackbone:
    """Make a backbone for torchvision's detectors.

    Args:
        body: a module with `feature_specs`, such as `build_backbone(...)` or `as_backbone(...)`.
        pyramid: `heads.fpn.FeaturePyramid(body.feature_specs)`, or any module with `feature_specs`. None builds
            torchvision's pyramid.
        channels: channels of torchvision's pyramid.
        extra_blocks: the additional levels of torchvision's pyramid; by default max pooling. RetinaNet and FCOS need
            `LastLevelP6P7`.

    Returns:
        The backbone.

    Raises:
        InvalidValue: the weights expect other pixels than RGB from 0 to 1, which is what torchvision's detectors give,
            or the levels of the pyramid differ in their channels.
    """
    preprocess: Preprocess = getattr(body, "preprocess", Preprocess())
    if (preprocess.channel_order, preprocess.value_range) != ("rgb", 1):
        raise InvalidValue(
            f"these weights expect {preprocess.channel_order.upper()} pixels of 0 to {preprocess.value_range}, "
            "torchvision's detectors give RGB of 0 to 1: use torchvision's or timm's weights"
        )
    if pyramid is None:
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        body_specs = cast("Mapping[str, FeatureSpec]", body.feature_specs)
        widths = [spec.channels for spec in body_specs.values()]
        pyramid = FeaturePyramidNetwork(widths, channels, extra_blocks or LastLevelMaxPool())
        return TorchvisionBackbone(body, pyramid, channels)
    pyramid_specs = cast("Mapping[str, FeatureSpec]", pyramid.feature_specs)
    pyramid_channels = {spec.channels for spec in pyramid_specs.values()}
    if len(pyramid_channels) != 1:
        raise InvalidValue(
            "torchvision's detectors need the same number of channels in every level, this pyramid gives "
            f"{sorted(pyramid_channels)}: give another pyramid, or None for torchvision's"
        )
    return TorchvisionBackbone(body, pyramid, pyramid_channels.pop())


def _classifier(
    name: str, *, weights: Weights | None = None, source: str | None = None, **settings: Any
) -> ResNetClassifier:
    """The builder of `resnet_backbone_<net>`; settings as for `ResNetClassifier`."""
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
    """The builder of `resnet_backbone_<net>_fpn`; settings as for `build_backbone`."""
    body = build_backbone(name, out_levels=out_levels, **settings)
    return torchvision_backbone(body, channels=channels, extra_blocks=extra_blocks)


def register() -> None:
    """Add `resnet_backbone_<net>` and `resnet_backbone_<net>_fpn` to torchvision's models."""
    from torchvision.models._api import BUILTIN_MODELS, register_model

    for net in IMAGENET_NETS:
        for ending, build in (("", _classifier), ("_fpn", _backbone)):
            name = f"resnet_backbone_{net}{ending}"
            if name not in BUILTIN_MODELS:
                builder = partial(build, net)
                builder.__module__ = __name__  # list_models() reads it of every builder
                register_model(name)(builder)
