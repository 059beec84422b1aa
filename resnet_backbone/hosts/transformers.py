"""transformers: `AutoBackbone`, and every model that takes a `backbone_config`.

`ResNetBackboneConfig` and `ResNetBackboneModel` are subclasses of transformers' own classes. They are built when they
are first imported: `from resnet_backbone.hosts.transformers import ResNetBackboneConfig`.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from ..backbone import ResNetBackbone, feature_specs_of
from ..norm import initialise_convs
from ..specs import RESNETS
from . import require
from .parts import imagenet_net, set_input_channels

STAGES = {"stem": "stem", "stage1": "c2", "stage2": "c3", "stage3": "c4", "stage4": "c5"}
MODEL_TYPE = "resnet_backbone"


def _mixins() -> tuple[Any, Any]:
    """`BackboneConfigMixin` and `BackboneMixin`."""
    try:
        module: Any = importlib.import_module("transformers.backbone_utils")
        return module.BackboneConfigMixin, module.BackboneMixin
    except (ImportError, AttributeError):  # before transformers 5
        module = importlib.import_module("transformers.utils.backbone_utils")
        return module.BackboneConfigMixin, module.BackboneMixin


@cache
def config_class() -> Any:
    """Build the class `ResNetBackboneConfig`.

    Returns:
        The class; the same one at every call.

    Raises:
        MissingPackage: transformers is not installed or too old.
    """
    require("transformers")
    config_mixin, _ = _mixins()
    base_config: Any = importlib.import_module("transformers").PretrainedConfig

    class ResNetBackboneConfig(config_mixin, base_config):  # type: ignore[misc,valid-type]
        """Configuration of `ResNetBackboneModel`.

        Args:
            name: a row of `RESNETS` with C2..C5.
            stride_on: the convolution of a bottleneck that carries the stride, "3x3" or "1x1".
            norm: as for `ResNetBackbone`.
            norm_eps: epsilon of the norms.
            frozen_stages: as for `ResNetBackbone`.
            num_channels: channels of the images.
            out_features: some of "stem", "stage1" (C2), ... "stage4" (C5); by default the last one.
            out_indices: the same by index, 0 (the stem) to 4 (C5); read if out_features is None.
            **others: settings of transformers' base class.

        Raises:
            InvalidValue: an unknown net, or one without C5.
        """

        model_type = MODEL_TYPE

        def __init__(
            self,
            name: str = "resnet50",
            stride_on: str = "3x3",
            norm: str = "frozen_bn",
            norm_eps: float = 1e-5,
            frozen_stages: int = 0,
            num_channels: int = 3,
            out_features: list[str] | None = None,
            out_indices: list[int] | None = None,
            **others: Any,
        ) -> None:
            super().__init__(**others)
            self.name, self.stride_on, self.norm, self.norm_eps = name, stride_on, norm, norm_eps
            self.frozen_stages, self.num_channels = frozen_stages, num_channels
            specs = feature_specs_of(RESNETS[imagenet_net(name)])
            self.hidden_sizes = [specs[level].channels for level in ("c2", "c3", "c4", "c5")]
            self.stage_names = list(STAGES)
            self._out_features, self._out_indices = None, None
            if out_features is not None or out_indices is None:
                self.out_features = out_features  # the mixin sets the indices accordingly
            else:
                self.out_indices = out_indices

    return _as_module_attribute(ResNetBackboneConfig)


@cache
def model_class() -> Any:
    """Build the class `ResNetBackboneModel`.

    Returns:
        The class; the same one at every call.

    Raises:
        MissingPackage: transformers is not installed or too old.
    """
    require("transformers")
    from transformers.modeling_outputs import BackboneOutput

    _, mixin = _mixins()
    base_model: Any = importlib.import_module("transformers").PreTrainedModel

    class ResNetBackboneModel(mixin, base_model):  # type: ignore[misc,valid-type]
        """A `ResNetBackbone` as a backbone of transformers.

        Args:
            config: a `ResNetBackboneConfig`.

        Attributes:
            body: the net; `load_weights(model.body, "imagenet1k_v1")` loads its weights.
        """

        config_class = config_class()
        base_model_prefix = "body"
        main_input_name = "pixel_values"
        has_attentions = False

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if init_backbone := getattr(self, "_init_backbone", None):  # before transformers 5
                cast(Any, init_backbone)(config)
            self.body = _body_of(config)
            self.num_features = [self.body.spec.stem_width, *config.hidden_sizes]
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            _initialise(module)

        def forward(
            self,
            pixel_values: Tensor,
            output_hidden_states: bool | None = None,
            output_attentions: bool | None = None,
            return_dict: bool | None = None,
            **_: Any,
        ) -> Any:
            """Compute the feature maps.

            Args:
                pixel_values: (N, C, H, W), normalised.
                output_hidden_states: return every stage that is built, too; by default as the configuration says.
                output_attentions: not used; the net has no attention.
                return_dict: False returns a tuple.
                **_: further arguments of transformers' models; not used.

            Returns:
                A `BackboneOutput` with one feature map (N, channels, ceil(H / stride), ceil(W / stride)) per entry of
                `out_features`.
            """
            levels = self.body.all_levels(pixel_values)
            maps: Any = tuple(levels[level] for level in self.body.out_levels)
            hidden = tuple(levels[level] for level in STAGES.values() if level in levels)
            with_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            output = BackboneOutput(feature_maps=maps, hidden_states=hidden if with_hidden else None, attentions=None)
            return output if return_dict is not False else output.to_tuple()

    return _as_module_attribute(ResNetBackboneModel)


def _body_of(config: Any) -> ResNetBackbone:
    """The net of a configuration, at initial values."""
    body = ResNetBackbone(
        replace(RESNETS[config.name], stride_on=config.stride_on),
        norm=config.norm,
        norm_eps=config.norm_eps,
        out_levels=[STAGES[name] for name in config.out_features],
        frozen_stages=config.frozen_stages,
    )
    set_input_channels(body, config.num_channels)
    return body


def _initialise(module: nn.Module) -> None:
    """Initialise a module that a checkpoint lacks."""
    if isinstance(module, nn.Conv2d):
        initialise_convs(module)
    elif hasattr(module, "running_var"):
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            getattr(module, name).data.fill_(value)


def _as_module_attribute(built: Any) -> Any:
    """Name a class as an attribute of this module, where pickle and transformers look for it; see `__getattr__`."""
    built.__module__, built.__qualname__ = __name__, built.__name__
    return built


def __getattr__(name: str) -> Any:
    if name == "ResNetBackboneConfig":
        return config_class()
    if name == "ResNetBackboneModel":
        return model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Add "resnet_backbone" to `AutoConfig`, `AutoBackbone` and `AutoModel`.

    `AutoModel.from_pretrained` and `ResNetBackboneModel.from_pretrained` read a folder that `save_pretrained` wrote.
    `AutoBackbone.from_pretrained` does not: it looks up its argument on transformers' hub.
    """
    from transformers import AutoBackbone, AutoConfig, AutoModel

    AutoConfig.register(MODEL_TYPE, config_class(), exist_ok=True)
    for auto in (AutoBackbone, AutoModel):
        auto.register(config_class(), model_class(), exist_ok=True)
