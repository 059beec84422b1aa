"""ResNetBackbone: image -> {"c2": ..., "c5": ...}.

A *level* is the output of a stage: `c1` (before the pooling of the stem), `stem` (after it), `c2` ... `c5`. A level of
stride s is (N, channels, ceil(H / s), ceil(W / s)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import STEMS, BasicBlock, Bottleneck
from .errors import InvalidValue, did_you_mean
from .norm import MakeNorm, conv_norm, frozen, initialise_convs, make_norm
from .plain import to_plain
from .preprocess import Preprocess
from .protocols import FeatureSpec
from .recompute import run_recomputing
from .specs import ResNetSpec
from .weights.keymaps import Renamed, rename_body
from .weights.read import WeightFile
from .weights.sources import WeightSource

ALL_LEVELS = ("c1", "stem", "c2", "c3", "c4", "c5")


def feature_specs_of(spec: ResNetSpec) -> dict[str, FeatureSpec]:
    """Channels and stride of every level of a net, `c1` to its deepest, without building it."""
    stem = STEMS[spec.stem]
    specs = {"c1": FeatureSpec(spec.stem_width, stem.c1_stride), "stem": FeatureSpec(spec.stem_width, stem.stride)}
    stride = stem.stride
    for stage in spec.stages:
        stride *= stage.stride
        specs[stage.level] = FeatureSpec(stage.width * spec.block.expansion, stride)
    return specs


class ResNetBody(nn.Module):
    """The stages that backbone and classifier share, with torchvision's module names.

    Args:
        spec: the net.
        norm: "frozen_bn", "bn", "bn_eval" (fixed statistics), "sync_bn" or "gn".
        norm_eps: epsilon of the norms.
        out_levels: the levels that `levels()` returns. Stages deeper than the deepest of them are not built.
        frozen_stages: 0 nothing, 1 the stem, 2 the stem and C2, ... 5 everything; see `freeze`.

    Attributes:
        feature_specs: level -> channels and stride, for the levels that are returned.
        preprocess: the pixel format that the weights expect; loading weights sets it.
        recompute: use gradient checkpointing in training (`recompute.py`).

    Raises:
        InvalidValue: a level that the net does not have, an unknown norm, or frozen_stages outside 0..5.
    """

    conv1: nn.Module
    bn1: nn.Module
    maxpool: nn.Module

    def __init__(
        self,
        spec: ResNetSpec,
        *,
        norm: str = "frozen_bn",
        norm_eps: float = 1e-5,
        out_levels: Sequence[str] = ("c2", "c3", "c4", "c5"),
        frozen_stages: int = 0,
    ) -> None:
        super().__init__()
        available = ALL_LEVELS[: 2 + len(spec.depths)]
        requested = (out_levels,) if isinstance(out_levels, str) else tuple(out_levels)
        for level in requested:
            if level not in available:
                raise InvalidValue(
                    f"out_levels names {level!r}, this net has {list(available)}: {did_you_mean(level, available)}"
                )
        if not requested:
            raise InvalidValue(f"out_levels is empty: name at least one of {list(available)}")
        self.spec, self.norm, self.norm_eps, self.frozen_stages = spec, norm, norm_eps, 0
        self.recompute = False
        self.preprocess = Preprocess()
        self.out_levels = tuple(level for level in available if level in requested)
        self._build(spec, make_norm(norm, norm_eps))
        self._initialise()
        self.freeze(frozen_stages)

    def _build(self, spec: ResNetSpec, norm: MakeNorm) -> None:
        stem = STEMS[spec.stem]
        for name, module in stem.parts(spec.stem_width, norm).items():
            self.add_module(name, module)
        channels = spec.stem_width
        deepest = ALL_LEVELS.index(self.out_levels[-1])
        self._stages: list[tuple[str, str]] = []  # (level, module name)
        for index, stage in enumerate(spec.stages[: max(0, deepest - 1)]):
            blocks = make_stage(spec, index, channels, norm)
            channels = stage.width * spec.block.expansion
            self.add_module(f"layer{index + 1}", blocks)
            self._stages.append((stage.level, f"layer{index + 1}"))
        specs = feature_specs_of(spec)
        self.feature_specs: dict[str, FeatureSpec] = {level: specs[level] for level in self.out_levels}

    def _initialise(self) -> None:
        """He et al. (ICCV 2015), section 3.4 of the paper: N(0, sqrt(2 / fan-out)), norms at one and zero."""
        initialise_convs(self)
        for module in self.modules():
            if self.spec.zero_init_last_norm and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(cast(Tensor, module.last_norm.weight))

    def freeze(self, stages: int) -> None:
        """Freeze the first stages; a frozen stage cannot be unfrozen.

        Their batch norms become `FrozenBatchNorm2d`, so a later `train()` does not change them.

        Args:
            stages: 0 nothing, 1 the stem, 2 the stem and C2, ... 5 everything.

        Raises:
            InvalidValue: outside 0..5.
        """
        if not 0 <= stages <= 5:
            raise InvalidValue(f"frozen_stages={stages}: give 0 (nothing), 1 (stem), 2 (stem and C2), ... 5 (all)")
        for name in self.stage_names()[:stages]:
            for part in ["conv1", "bn1"] if name == "stem" else [name]:
                self.add_module(part, frozen(getattr(self, part)))
        self.frozen_stages = max(self.frozen_stages, stages)

    def stage_names(self) -> list[str]:
        """Names of the parts in the order of `frozen_stages`: the stem, then the stages that are built."""
        return ["stem", *(name for _, name in self._stages)]

    def built_levels(self) -> list[str]:
        """Every level that is computed, including those that `levels()` does not return."""
        return ["c1", "stem", *(level for level, _ in self._stages)]

    def levels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the levels named in `out_levels`.

        Args:
            pixels: (N, 3, H, W), normalised.

        Returns:
            Level -> (N, channels, ceil(H / stride), ceil(W / stride)).
        """
        outputs = self.all_levels(pixels)
        return {level: outputs[level] for level in self.out_levels}

    def all_levels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute every level that is built.

        Args:
            pixels: (N, 3, H, W), normalised.

        Returns:
            Level -> (N, channels, ceil(H / stride), ceil(W / stride)), `c1` first.
        """
        outputs: dict[str, Tensor] = {}
        x = F.relu(conv_norm(self.conv1, self.bn1, pixels), inplace=True)
        outputs["c1"] = x
        x = outputs["stem"] = self.maxpool(x)
        for level, name in self._stages:
            stage: nn.Sequential = getattr(self, name)
            x = outputs[level] = run_recomputing(stage, x) if self.recompute and self.training else stage(x)
        return outputs

    def describe(self) -> dict[str, Any]:
        """How to build this net again, as plain values: the arguments of `ResNetBackbone`."""
        levels = [level for level in self.built_levels() if level != "c1"]
        settings = {"norm": self.norm, "norm_eps": self.norm_eps, "frozen_stages": self.frozen_stages}
        return {"spec": to_plain(self.spec), "out_levels": levels, **settings}

    def to_native_keys(self, state: Mapping[str, Tensor]) -> Renamed:
        """Bring a net's tensors, in the layout of any project, to the keys of this net.

        Args:
            state: the tensors of a file. Of a detector's file only the backbone is taken.

        Returns:
            The tensors under native keys, and the sources that use the names which they had.
        """
        deepest = ALL_LEVELS[len(self.spec.depths) + 1]
        with torch.device("meta"):
            whole = ResNetBody(self.spec, norm="gn" if self.norm == "gn" else "bn", out_levels=[deepest])
        shapes = {key: tuple(value.shape) for key, value in whole.state_dict().items()}
        renamed = rename_body(state, {**shapes, "fc.weight": (), "fc.bias": ()})
        # there is one convention for the CIFAR nets, so their source does not matter
        return replace(renamed, candidates=()) if self.spec.stem == "cifar" else renamed

    def check_source(self, source: WeightSource, file: WeightFile) -> None:
        """Check that this net was built with the settings that the weights were trained with.

        Args:
            source: what the weights were trained with.
            file: the file, for the message.

        Raises:
            InvalidValue: another stride placement or epsilon.
        """
        spec = self.spec
        if issubclass(spec.block, Bottleneck) and source.stride_on != spec.stride_on:
            raise InvalidValue(
                f"{file}: these weights were trained with the stride on the {source.stride_on}, this net has it on "
                f'the {spec.stride_on}: build it with stride_on="{source.stride_on}" (a field of ResNetSpec and '
                "DetectorRecipe; build_backbone and build_detector adopt it where the net is given by its name)"
            )
        if self.norm != "gn" and source.norm_eps != self.norm_eps:
            raise InvalidValue(
                f"{file}: these weights were trained with an epsilon of {source.norm_eps:g} in the norms, this net has "
                f"{self.norm_eps:g}: build it with norm_eps={source.norm_eps:g} (build_backbone and build_detector do)"
            )

    def apply_source(self, source: WeightSource | None, file: WeightFile, renamed: Renamed) -> None:
        """Take over the pixel format of the weights; how images are resized is left to the detector.

        Args:
            source: what the weights were trained with; None leaves `preprocess` as it is.
            file: the file that was loaded.
            renamed: its tensors under native keys.
        """
        if source is not None:
            self.preprocess = self.preprocess.with_colours_of(source.preprocess)

    def is_unused_key(self, key: str) -> bool:
        """Whether a tensor without a place in this net is left out by design.

        Args:
            key: a native key of the file.

        Returns:
            True for a stage that the net has and that was not built, the linear layer of a classifier, and counters of
            batch norms.
        """
        if key.endswith("num_batches_tracked"):
            return True
        built = {*self.stage_names(), *(name for name, _ in self.named_children())}
        possible = {f"layer{index + 1}" for index in range(len(self.spec.depths))} | {"fc"}
        return key.split(".")[0] in possible - built


def make_stage(spec: ResNetSpec, index: int, channels: int, norm: MakeNorm) -> nn.Sequential:
    """Build the blocks of one stage, `layer{index + 1}`.

    Args:
        spec: the net.
        index: the stage, 0 for C2.
        channels: channels of its input.
        norm: makes a norm for a number of channels.

    Returns:
        The blocks.
    """
    stage, blocks = spec.stages[index], []
    for block in range(stage.blocks):
        stride = stage.stride if block == 0 else 1
        # shortcut C projects in every block; A and B act where the shape changes
        blocks.append(spec.block(channels, stage.width, stride, stage.dilation, norm, spec.shortcut, spec.stride_on))
        channels = stage.width * spec.block.expansion
    return nn.Sequential(*blocks)


class ResNetBackbone(ResNetBody):
    """Feature levels for a detector or a segmenter; arguments and attributes as for `ResNetBody`."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the levels named in `out_levels`; see `levels`."""
        return self.levels(pixels)

    def take_last_stage(self) -> tuple[nn.Sequential, FeatureSpec]:
        """Remove the deepest stage and its level, for C4 detectors, which run it on pooled regions.

        Returns:
            The blocks of the stage, and the channels and stride of its level.

        Raises:
            InvalidValue: there is no stage, or its level is the only one.
        """
        if not self._stages or len(self.out_levels) < 2:
            raise InvalidValue(f"levels {list(self.out_levels)} leave nothing without the last: name at least two")
        level, name = self._stages.pop()
        blocks: nn.Sequential = getattr(self, name)
        delattr(self, name)
        self.out_levels = tuple(kept for kept in self.out_levels if kept != level)
        return blocks, self.feature_specs.pop(level)
