"""timm: `create_model("resnet_backbone_resnet50", ...)`, the classifier and, with `features_only=True`, the levels.

Key names are those of timm's own resnets: their checkpoints load, with `checkpoint_path=` and through `pretrained_cfg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..backbone import feature_specs_of
from ..build import load_weights
from ..classifier import ResNetClassifier
from ..errors import InvalidValue
from ..specs import RESNETS
from ..weights.catalog import PUBLISHED, address
from .parts import IMAGENET_NETS, FeatureBody, set_input_channels

LEVELS = ("c1", "c2", "c3", "c4", "c5")  # timm's features, in the order of out_indices


def feature_info_of(name: str) -> list[dict[str, Any]]:
    """Describe the five features of a net as timm's `feature_info` does.

    Args:
        name: a row of `RESNETS` with C2..C5.

    Returns:
        One record per level C1..C5. C1 is the input of the stem's pooling.
    """
    specs = feature_specs_of(RESNETS[name])
    modules = {"c1": "maxpool", "c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}
    return [
        {
            "num_chs": specs[level].channels,
            "reduction": specs[level].stride,
            "module": modules[level],
            "hook_type": "forward_pre" if level == "c1" else "forward",
        }
        for level in LEVELS
    ]


def _take(indices: int | Sequence[int] | None) -> list[int]:
    """Resolve timm's out_indices: None for all five, n for the last n, or indices, negative ones from the end."""
    if indices is None:
        return list(range(len(LEVELS)))
    requested = range(-indices, 0) if isinstance(indices, int) else indices
    if not requested or not all(-len(LEVELS) <= index < len(LEVELS) for index in requested):
        raise InvalidValue(f"out_indices={indices}: there are {len(LEVELS)} features, give some of 0 (C1) to 4 (C5)")
    return sorted({index % len(LEVELS) for index in requested})


class _GradCheckpointing:
    """timm's switch for gradient checkpointing, of a `ResNetBody`."""

    recompute: bool

    @property
    def grad_checkpointing(self) -> bool:
        """Whether training uses gradient checkpointing."""
        return self.recompute

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing on or off: less memory in training, and about a third more time.

        Args:
            enable: True to use it.
        """
        self.recompute = enable


class TimmClassifier(_GradCheckpointing, ResNetClassifier):
    """The classifier with the interface of timm's models.

    Args:
        name: a row of `RESNETS` with C2..C5.
        num_classes: number of classes; 0 for no linear layer.
        in_chans: channels of the images.
        global_pool: "avg", or "" for the feature map (with num_classes=0).
        drop_rate: probability of dropout before the linear layer.
        norm: as for `ResNetBackbone`.
        frozen_stages: as for `ResNetBackbone`.

    Raises:
        InvalidValue: another pooling, or classes without pooling; else as for `ResNetClassifier`.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        norm: str = "bn",
        frozen_stages: int = 0,
    ) -> None:
        super().__init__(name, num_classes=max(1, num_classes), norm=norm, frozen_stages=frozen_stages)
        set_input_channels(self, in_chans)
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.fc.in_features
        self.feature_info = feature_info_of(name)
        self.drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by one for another number of classes, with initial values.

        Args:
            num_classes: number of classes; 0 for no linear layer. With the present number the layer stays as it is.
            global_pool: "avg", or "" for the feature map (with num_classes=0); None for the present one.

        Raises:
            InvalidValue: another pooling, or classes without pooling.
        """
        pool = global_pool if global_pool is not None else getattr(self, "global_pool", "avg")
        if pool not in ("avg", ""):
            raise InvalidValue(f"global_pool={pool!r} is not supported: give 'avg', or '' for the feature map")
        if num_classes and not pool:
            raise InvalidValue(
                f"num_classes={num_classes} needs global_pool='avg': give num_classes=0 for the feature map"
            )
        self.num_classes, self.global_pool = num_classes, pool
        if num_classes == 0:
            self.fc = nn.Identity()  # type: ignore[assignment]
        elif not isinstance(self.fc, nn.Linear) or self.fc.out_features != num_classes:
            weight = self.bn1.weight
            self.fc = nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)

    def get_classifier(self) -> nn.Module:
        """The linear layer, or the identity without classes."""
        return self.fc

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Compute C5.

        Args:
            pixels: (N, C, H, W), normalised.

        Returns:
            (N, 2048 or 512, ceil(H / 32), ceil(W / 32)).
        """
        return self.levels(pixels)["c5"]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify.

        Args:
            x: C5.
            pre_logits: return the input of the linear layer.

        Returns:
            (N, num_classes) logits; without classes or with pre_logits (N, 2048 or 512); without pooling C5 itself.
        """
        x = self.avgpool(x).flatten(1) if self.global_pool else x
        if pre_logits:
            return x
        logits: Tensor = self.fc(self.drop(x))
        return logits

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify images.

        Args:
            pixels: (N, C, H, W), normalised.

        Returns:
            What `forward_head` returns.
        """
        return self.forward_head(self.forward_features(pixels))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute C5 and intermediate features.

        Args:
            x: (N, C, H, W), normalised.
            indices: None for all five features, n for the last n, or indices, 0 (C1) to 4 (C5).
            norm: not used; timm's models have this argument.
            stop_early: not used; timm's models have this argument.
            output_fmt: "NCHW".
            intermediates_only: return the features without C5.

        Returns:
            (C5, list of features), or the list of features.

        Raises:
            InvalidValue: another format, or indices outside 0..4.
        """
        if output_fmt != "NCHW":
            raise InvalidValue(f"output_fmt={output_fmt!r} is not supported: give 'NCHW'")
        levels = self.all_levels(x)
        features = [levels[LEVELS[index]] for index in _take(indices)]
        return features if intermediates_only else (levels["c5"], features)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """The groups of parameters for layer-wise learning rates, as in timm's resnets.

        Args:
            coarse: one group per stage instead of one per block.

        Returns:
            Group -> regular expression of its keys.
        """
        return {"stem": r"^conv1|bn1|maxpool", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


class TimmFeatures(_GradCheckpointing, FeatureBody):
    """The feature levels, for `create_model(..., features_only=True)`.

    Stages deeper than the deepest level are not built. The state dict of a whole classifier loads; its `fc` and the
    stages that are not built are left out.

    Args:
        name: a row of `RESNETS` with C2..C5.
        out_indices: some of 0 (C1) to 4 (C5), n for the last n, or None for all.
        in_chans: channels of the images.
        norm: as for `ResNetBackbone`.
        frozen_stages: as for `ResNetBackbone`.
        num_classes: not used; every `pretrained_cfg` brings it.
        global_pool: not used; every `pretrained_cfg` brings it.

    Attributes:
        feature_info: timm's record of channels and strides.

    Raises:
        InvalidValue: indices outside 0..4; else as for `ResNetBackbone`.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: int | Sequence[int] = (0, 1, 2, 3, 4),
        in_chans: int = 3,
        norm: str = "bn",
        frozen_stages: int = 0,
        num_classes: int = 1000,
        global_pool: str = "avg",
    ) -> None:
        from timm.models import FeatureInfo

        indices = _take(out_indices)
        levels = [LEVELS[index] for index in indices]
        super().__init__(RESNETS[name], norm=norm, out_levels=levels, frozen_stages=frozen_stages)
        set_input_channels(self, in_chans)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.feature_info = FeatureInfo(feature_info_of(name), tuple(indices))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute the levels of `out_indices`.

        Args:
            pixels: (N, C, H, W), normalised.

        Returns:
            One (N, channels, ceil(H / stride), ceil(W / stride)) per level, fine to coarse.
        """
        return list(self.levels(pixels).values())


def _load_strictly(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename pretrained weights to native keys and load them strictly: timm's `pretrained_filter_fn`.

    timm itself loads leniently afterwards. Only the classifier, and the first convolution for other numbers of input
    channels, may differ from the file.
    """
    assert isinstance(model, (TimmClassifier, TimmFeatures))
    native = dict(model.to_native_keys(state).state)
    may_differ = ["fc.*"] if isinstance(model, TimmClassifier) else []
    if model.in_chans != 3:
        may_differ += ["conv1.weight", "conv1.0.weight"]
    load_weights(model, native, allow_missing=may_differ)
    return native


def _build(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
    """What `create_model` calls; settings as for `TimmClassifier` and `TimmFeatures`."""
    from timm.models import build_model_with_cfg

    if (stride := settings.pop("output_stride", 32)) != 32:
        raise InvalidValue(
            f"output_stride={stride} is not supported: leave it out (for C5 at stride 16 build a ResNetSpec with "
            "c5_dilation=2)"
        )
    features_only = settings.pop("features_only", False)
    settings.pop("feature_cls", None)  # how timm extracts features from its own nets

    def net(**kwargs: Any) -> nn.Module:
        return TimmFeatures(name, **kwargs) if features_only else TimmClassifier(name, **kwargs)

    variant = f"resnet_backbone_{name}"
    model: nn.Module = build_model_with_cfg(net, variant, pretrained, pretrained_filter_fn=_load_strictly, **settings)
    return model


def _config(name: str) -> dict[str, Any]:
    """The `pretrained_cfg` of a net."""
    published = [address(weights, name) for weights, nets in PUBLISHED.items() if name in nets]
    return {
        "url": published[0] if published else "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1.0" if RESNETS[name].stem == "deep" else "conv1",
        "classifier": "fc",
    }


def _entry(name: str) -> Any:
    """The function that timm's registry holds for a net."""

    def entry(pretrained: bool = False, **settings: Any) -> nn.Module:
        return _build(name, pretrained, **settings)

    entry.__name__ = entry.__qualname__ = f"resnet_backbone_{name}"
    entry.__module__ = __name__
    return entry


# timm's registry reads a module's default_cfgs when a model of it is registered
default_cfgs: dict[str, Any] = {f"resnet_backbone_{name}": _config(name) for name in IMAGENET_NETS}


def register() -> None:
    """Add `resnet_backbone_<net>` to timm's models, for every net with C2..C5."""
    import timm

    for name in IMAGENET_NETS:
        if not timm.is_model(f"resnet_backbone_{name}"):
            timm.models.register_model(_entry(name))
