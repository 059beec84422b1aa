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
from .parts import IMAGENET_NETS, LevelsOfANet, set_input_channels

LEVELS = ("c1", "c2", "c3", "c4", "c5")  # timm's five features, by out_indices


def feature_info_of(name: str) -> list[dict[str, Any]]:
    """timm's records of the five features of a net. c1 is what enters the pooling."""
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
    """timm's way of asking: None for all five, n for the last n, or some of them, also counted from the end."""
    if indices is None:
        return list(range(len(LEVELS)))
    asked = range(-indices, 0) if isinstance(indices, int) else indices
    if not asked or not all(-len(LEVELS) <= index < len(LEVELS) for index in asked):
        raise InvalidValue(f"{indices} asks for features that are not here: there are {len(LEVELS)}, 0 (C1) to 4 (C5)")
    return sorted({index % len(LEVELS) for index in asked})


class TimmClassifier(ResNetClassifier):
    """The classifier with timm's calls. norm and frozen_stages as `ResNetBackbone` has them."""

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
        self.in_chans, self.grad_checkpointing = in_chans, False
        self.num_features = self.head_hidden_size = self.fc.in_features
        self.feature_info = feature_info_of(name)
        self.drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """num_classes 0: pooled features; with global_pool "" the map itself. Raises ValueError for another pooling."""
        pool = global_pool if global_pool is not None else getattr(self, "global_pool", "avg")
        if pool not in ("avg", ""):
            raise InvalidValue(f"global_pool={pool!r} is not here: give 'avg', or '' for the map itself")
        if num_classes and not pool:
            raise InvalidValue(f"num_classes={num_classes} needs global_pool='avg': give num_classes=0 for the map")
        self.num_classes, self.global_pool = num_classes, pool
        if num_classes == 0:
            self.fc = nn.Identity()  # type: ignore[assignment]
        elif not isinstance(self.fc, nn.Linear) or self.fc.out_features != num_classes:
            where = self.bn1.weight
            self.fc = nn.Linear(self.num_features, num_classes, device=where.device, dtype=where.dtype)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> C5, (N, 2048 or 512, ceil(H / 32), ceil(W / 32))."""
        return self.levels(pixels)["c5"]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """C5 -> (N, classes); pre_logits: (N, features)."""
        x = self.avgpool(x).flatten(1) if self.global_pool else x
        return x if pre_logits else self.fc(self.drop(x))

    def forward(self, pixels: Tensor) -> Tensor:
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
        """timm's call for features in passing: a list of them, or the pair (C5, list)."""
        if output_fmt != "NCHW":
            raise InvalidValue(f"output_fmt={output_fmt!r}: a ResNet's features are NCHW")
        found = self.all_levels(x)
        features = [found[LEVELS[index]] for index in _take(indices)]
        return features if intermediates_only else (found["c5"], features)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            raise InvalidValue("gradient checkpointing is not here: leave it out, or wrap the stages yourself")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """For layer-wise learning rates, as timm's resnets group theirs."""
        return {"stem": r"^conv1|bn1|maxpool", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


class TimmFeatures(LevelsOfANet):
    """`features_only=True`: a list of levels, `feature_info`, and nothing deeper than was asked for.

    A whole classifier's state dict loads: its `fc` and the stages that are not here are left out.
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

        # num_classes and global_pool come with every pretrained_cfg; there is no head that could mind them
        indices = _take(out_indices)
        levels = [LEVELS[index] for index in indices]
        super().__init__(RESNETS[name], norm=norm, out_levels=levels, frozen_stages=frozen_stages)
        set_input_channels(self, in_chans)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.feature_info = FeatureInfo(feature_info_of(name), tuple(indices))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return list(self.levels(pixels).values())


def _checked(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm loads pretrained weights leniently where classes or channels differ: nothing else may. Raises
    `WeightMismatch`."""
    assert isinstance(model, (TimmClassifier, TimmFeatures))
    renamed = dict(model.to_native_keys(state).state)
    adapted = ["fc.*"] if isinstance(model, TimmClassifier) else []
    if model.in_chans != 3:
        adapted += ["conv1.weight", "conv1.0.weight"]
    load_weights(model, renamed, allow_missing=adapted)
    return renamed


def _build(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
    from timm.models import build_model_with_cfg

    if (stride := settings.pop("output_stride", 32)) != 32:
        raise InvalidValue(
            f"output_stride={stride} is not here: leave it out "
            "(for C5 at stride 16 build a ResNetSpec with c5_dilation=2)"
        )
    features_only = settings.pop("features_only", False)
    settings.pop("feature_cls", None)  # how timm takes features out of its own nets; ours gives them by itself

    def net(**kwargs: Any) -> nn.Module:
        return TimmFeatures(name, **kwargs) if features_only else TimmClassifier(name, **kwargs)

    variant = f"resnet_backbone_{name}"
    return build_model_with_cfg(net, variant, pretrained, pretrained_filter_fn=_checked, **settings)


def _config(name: str) -> dict[str, Any]:
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
    def entry(pretrained: bool = False, **settings: Any) -> nn.Module:
        return _build(name, pretrained, **settings)

    entry.__name__ = entry.__qualname__ = f"resnet_backbone_{name}"
    entry.__module__ = __name__
    return entry


# timm's registry reads a module's default_cfgs when a model of it is registered
default_cfgs: dict[str, Any] = {f"resnet_backbone_{name}": _config(name) for name in IMAGENET_NETS}


def register() -> None:
    """`timm.create_model("resnet_backbone_<net>")` for every net with C2..C5."""
    import timm

    for name in IMAGENET_NETS:
        if not timm.is_model(f"resnet_backbone_{name}"):
            timm.models.register_model(_entry(name))
