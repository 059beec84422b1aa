"""transformers: `AutoBackbone`, and every model that takes a `backbone_config`.

`ResNetBackboneConfig` and `ResNetBackboneModel` are subclasses of transformers' own, made when they are first asked
for: `from resnet_backbone.hosts.transformers import ResNetBackboneConfig`.
"""

from __future__ import annotations

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


def _mixins() -> tuple[type, type]:
    try:
        from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    except ImportError:  # before 5
        from transformers.utils.backbone_utils import BackboneConfigMixin, BackboneMixin
    return BackboneConfigMixin, BackboneMixin


@cache
def config_class() -> Any:
    """`ResNetBackboneConfig`."""
    require("transformers")
    from transformers import PretrainedConfig

    config_mixin, _ = _mixins()

    class ResNetBackboneConfig(config_mixin, PretrainedConfig):  # type: ignore[misc,valid-type]
        """name: a row of `RESNETS` with C2..C5; stride_on, norm, norm_eps, frozen_stages as `ResNetBackbone` has them;
        num_channels of the images; out_features: some of stem, stage1 ... stage4 (C5), or out_indices: 0 ... 4."""

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
                self.out_features = out_features  # the mixin aligns the indices
            else:
                self.out_indices = out_indices

    return _published(ResNetBackboneConfig)


@cache
def model_class() -> Any:
    """`ResNetBackboneModel`."""
    require("transformers")
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BackboneOutput

    _, mixin = _mixins()

    class ResNetBackboneModel(mixin, PreTrainedModel):  # type: ignore[misc,valid-type]
        """pixel_values (N, 3, H, W), normalised -> `BackboneOutput` with a feature map for each of `out_features`.

        The net is `body`: `load_weights(model.body, "imagenet1k_v1")`.
        """

        config_class = config_class()
        base_model_prefix = "body"
        main_input_name = "pixel_values"
        has_attentions = False

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if before_5 := getattr(self, "_init_backbone", None):
                cast(Any, before_5)(config)
            spec = RESNETS[config.name]
            self.body = ResNetBackbone(
                replace(spec, stride_on=config.stride_on),
                norm=config.norm,
                norm_eps=config.norm_eps,
                out_levels=[STAGES[name] for name in config.out_features],
                frozen_stages=config.frozen_stages,
            )
            set_input_channels(self.body, config.num_channels)
            self.num_features = [spec.stem_width, *config.hidden_sizes]
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            """For weights that a checkpoint lacks."""
            if isinstance(module, nn.Conv2d):
                initialise_convs(module)
            elif hasattr(module, "running_var"):
                for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                    getattr(module, name).data.fill_(value)

        def forward(
            self,
            pixel_values: Tensor,
            output_hidden_states: bool | None = None,
            output_attentions: bool | None = None,
            return_dict: bool | None = None,
            **_: Any,
        ) -> Any:
            every = self.body.all_levels(pixel_values)
            maps: Any = tuple(every[level] for level in self.body.out_levels)
            hidden = tuple(every[level] for level in STAGES.values() if level in every)
            wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            output = BackboneOutput(feature_maps=maps, hidden_states=hidden if wanted else None, attentions=None)
            return output if return_dict is not False else output.to_tuple()

    return _published(ResNetBackboneModel)


def _published(made: Any) -> Any:
    """A class made in a function, findable where pickle and transformers look for it: see `__getattr__`."""
    made.__module__, made.__qualname__ = __name__, made.__name__
    return made


def __getattr__(name: str) -> Any:
    if name == "ResNetBackboneConfig":
        return config_class()
    if name == "ResNetBackboneModel":
        return model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """`AutoConfig.for_model("resnet_backbone")`, `AutoBackbone` and `AutoModel`.

    transformers asks its hub for whatever `AutoBackbone.from_pretrained` is given; `AutoModel.from_pretrained` and
    `ResNetBackboneModel.from_pretrained` read a folder.
    """
    from transformers import AutoBackbone, AutoConfig, AutoModel

    AutoConfig.register(MODEL_TYPE, config_class(), exist_ok=True)
    for auto in (AutoBackbone, AutoModel):
        auto.register(config_class(), model_class(), exist_ok=True)
