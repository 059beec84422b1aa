"""ResNetBackbone: image -> {"c2": ..., "c5": ...}.

Glossary: a *level* is a stage's output: `c1` (before the stem's pooling), `stem` (after it), `c2` ... `c5`;
a level of stride s holds (N, channels, ceil(H / s), ceil(W / s)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import STEMS, BasicBlock, Bottleneck
from .norm import MakeNorm, conv_norm, frozen, initialise_convs, make_norm
from .preprocess import Preprocess
from .recompute import run_recomputing
from .specs import ResNetSpec, find_spec
from .errors import did_you_mean
from .weights.keymaps import Renamed, rename_body

if TYPE_CHECKING:
    from .weights.load import WeightFile
    from .weights.sources import WeightSource

ALL_LEVELS = ("c1", "stem", "c2", "c3", "c4", "c5")


@dataclass(frozen=True)
class FeatureSpec:
    """What a level holds: its channels and its stride in pixels of the input."""

    channels: int
    stride: int


def feature_specs_of(spec: ResNetSpec) -> dict[str, FeatureSpec]:
    """What every level of a net holds, `c1` to its deepest, without building it."""
    stem = STEMS[spec.stem]
    specs = {"c1": FeatureSpec(spec.stem_width, stem.c1_stride), "stem": FeatureSpec(spec.stem_width, stem.stride)}
    stride = stem.stride
    for stage in spec.stages:
        stride *= stage.stride
        specs[stage.level] = FeatureSpec(stage.width * spec.block.expansion, stride)
    return specs


class ResNetBody(nn.Module):
    """The stages that backbone and classifier share. Modules carry torchvision's names.

    Args:
        spec: the net. norm: "frozen_bn", "bn", "bn_eval" (fixed statistics), "sync_bn" or "gn".
        norm_eps: the norms' epsilon.
        out_levels: which levels `levels()` returns; stages deeper than the deepest of them are not built.
        frozen_stages: 0 nothing, 1 the stem, 2 the stem and C2, ... 5 everything; see `freeze`.
    `preprocess` says which pixels the weights know; loading weights sets it. With `recompute` set, training forgets
    what happens within a block and computes it again on the way back (`recompute.py`).
    Raises ValueError for levels that the net does not have, or a frozen_stages outside 0..5.
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
        has = ALL_LEVELS[: 2 + len(spec.depths)]
        asked = (out_levels,) if isinstance(out_levels, str) else tuple(out_levels)
        for level in asked:
            if level not in has:
                raise ValueError(f"out_levels names {level!r}, this net has {list(has)}: {did_you_mean(level, has)}")
        if not asked:
            raise ValueError(f"out_levels is empty: name at least one of {list(has)}")
        self.spec, self.norm, self.norm_eps, self.frozen_stages = spec, norm, norm_eps, 0
        self.recompute = False
        self.preprocess = Preprocess()
        self.out_levels = tuple(level for level in has if level in asked)
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
        """He et al. (ICCV 2015), the paper's section 3.4: N(0, sqrt(2 / fan-out)), norms at one and zero."""
        initialise_convs(self)
        for module in self.modules():
            if self.spec.zero_init_last_norm and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(cast(Tensor, module.last_norm.weight))

    def freeze(self, stages: int) -> None:
        """Freeze the first so many of: the stem, C2, ... C5. Their batch norms become `FrozenBatchNorm2d`: no later
        `train()` can bring them back to life. What is frozen already stays so. Raises ValueError outside 0..5."""
        if not 0 <= stages <= 5:
            raise ValueError(f"frozen_stages={stages}: give 0 (nothing), 1 (stem), 2 (stem and C2), ... 5 (all)")
        for name in self.stage_names()[:stages]:
            for part in ["conv1", "bn1"] if name == "stem" else [name]:
                self.add_module(part, frozen(getattr(self, part)))
        self.frozen_stages = max(self.frozen_stages, stages)

    def stage_names(self) -> list[str]:
        """In the order of `frozen_stages`: the stem, then the stages that are built."""
        return ["stem", *(name for _, name in self._stages)]

    def built_levels(self) -> list[str]:
        """Every level that could be given, whether it was asked for or not."""
        return ["c1", "stem", *(level for level, _ in self._stages)]

    def levels(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels: (N, 3, H, W), normalised -> level -> (N, channels, ceil(H / stride), ceil(W / stride))."""
        found = self.all_levels(pixels)
        return {level: found[level] for level in self.out_levels}

    def all_levels(self, pixels: Tensor) -> dict[str, Tensor]:
        """Of every level that is built, in the order of the journey."""
        found: dict[str, Tensor] = {}
        x = F.relu(conv_norm(self.conv1, self.bn1, pixels), inplace=True)
        found["c1"] = x
        x = found["stem"] = self.maxpool(x)
        for level, name in self._stages:
            stage: nn.Sequential = getattr(self, name)
            x = found[level] = run_recomputing(stage, x) if self.recompute and self.training else stage(x)
        return found

    def to_native_keys(self, state: Mapping[str, Tensor]) -> Renamed:
        """A net's tensors in whatever layout, under the names here (`weights.keymaps`); of a detector, its backbone."""
        deepest = ALL_LEVELS[len(self.spec.depths) + 1]
        with torch.device("meta"):
            whole = ResNetBody(self.spec, norm="gn" if self.norm == "gn" else "bn", out_levels=[deepest])
        keys = {key: tuple(value.shape) for key, value in whole.state_dict().items()}
        renamed = rename_body(state, {**keys, "fc.weight": (), "fc.bias": ()})
        # the CIFAR nets have one layout, and no second meaning
        return replace(renamed, candidates=()) if self.spec.stem == "cifar" else renamed

    def check_source(self, meaning: WeightSource, file: WeightFile) -> None:
        """Raises ValueError where this net is built with another stride placement or epsilon."""
        spec = self.spec
        if issubclass(spec.block, Bottleneck) and meaning.stride_on != spec.stride_on:
            raise ValueError(
                f"{file}: these weights were trained with the stride on the {meaning.stride_on}, this net has it on "
                f'the {spec.stride_on}: build it with stride_on="{meaning.stride_on}" (a field of ResNetSpec and '
                "DetectorRecipe; build_backbone and build_detector adopt it where the net is given by its name)"
            )
        if self.norm != "gn" and meaning.norm_eps != self.norm_eps:
            raise ValueError(
                f"{file}: these weights were trained with a norm's epsilon of {meaning.norm_eps:g}, this net has "
                f"{self.norm_eps:g}: build it with norm_eps={meaning.norm_eps:g} (build_backbone and build_detector do)"
            )

    def apply_source(self, meaning: WeightSource | None, file: WeightFile, renamed: Renamed) -> None:
        """How images are resized is a detector's affair; their colours are the weights'."""
        if meaning is not None:
            self.preprocess = self.preprocess.with_colours_of(meaning.preprocess)


def make_stage(spec: ResNetSpec, index: int, channels: int, norm: MakeNorm) -> nn.Sequential:
    """The blocks of one stage, `layer{index + 1}`, for an input of so many channels."""
    stage, blocks = spec.stages[index], []
    for block in range(stage.blocks):
        stride = stage.stride if block == 0 else 1
        # C projects in every block; A and B only act where the shape changes
        blocks.append(spec.block(channels, stage.width, stride, stage.dilation, norm, spec.shortcut, spec.stride_on))
        channels = stage.width * spec.block.expansion
    return nn.Sequential(*blocks)


class ResNetBackbone(ResNetBody):
    """Feature levels for a detector or segmenter; arguments as `ResNetBody`.

    `feature_specs` maps every level that `forward` returns to its channels and stride.
    """

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.levels(pixels)

    def take_last_stage(self) -> tuple[nn.Sequential, FeatureSpec]:
        """Remove the deepest stage and its level, and hand them out: C4 detectors run it on pooled regions.

        Raises ValueError where there is no stage, or it gives the only level.
        """
        if not self._stages or len(self.out_levels) < 2:
            raise ValueError(f"levels {list(self.out_levels)} leave nothing without the last: name at least two")
        level, name = self._stages.pop()
        blocks: nn.Sequential = getattr(self, name)
        delattr(self, name)
        self.out_levels = tuple(kept for kept in self.out_levels if kept != level)
        return blocks, self.feature_specs.pop(level)


def build_backbone(
    name: str | ResNetSpec,
    *,
    weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
    source: str | None = None,
    norm: str = "frozen_bn",
    out_levels: Sequence[str] = ("c2", "c3", "c4", "c5"),
    frozen_stages: int = 2,
) -> ResNetBackbone:
    """A backbone by name (a row of `RESNETS`) or by spec, with weights loaded strictly.

    weights: a published name ("imagenet1k_v1", "imagenet1k_v2"), a file (.pth, .safetensors, or a .pkl of arrays) in
    any layout of `weights.keymaps`, or a state dict. source: whose they are (a key of `weights.sources.SOURCES`),
    where the file does not tell. A net given by its name takes stride placement and epsilon from the weights, a spec
    means what it says; `preprocess` becomes that of the weights.
    Raises ValueError where norms or stages would be frozen at random values (no weights), for unknown names, and as
    `load_weights` does; FileNotFoundError or ConnectionError where the weights cannot be had.
    """
    from .weights.load import load_weights, source_of, read_weights  # here: weights.load needs this module's classes

    spec = find_spec(name)
    check_frozen_has_weights(weights is not None, norm, frozen_stages)

    def build(spec: ResNetSpec, norm_eps: float = 1e-5) -> ResNetBackbone:
        return ResNetBackbone(spec, norm=norm, norm_eps=norm_eps, out_levels=out_levels, frozen_stages=frozen_stages)

    if weights is None:
        return build(spec)
    file = read_weights(weights, net=name if isinstance(name, str) else None)
    backbone = build(spec)
    meaning = source_of(file, backbone.to_native_keys(file.state), source)
    if meaning is not None and isinstance(name, str):
        stride_on = meaning.stride_on if issubclass(spec.block, Bottleneck) else spec.stride_on
        backbone = build(replace(spec, stride_on=stride_on), meaning.norm_eps)
    load_weights(backbone, file, source=source)
    return backbone


def check_frozen_has_weights(has_weights: bool, norm: str, frozen_stages: int) -> None:
    """Raises ValueError where something would be frozen that nobody has trained."""
    fixed = norm in ("frozen_bn", "bn_eval")
    if has_weights or not (fixed or frozen_stages):
        return
    what = f"norm={norm!r}" if fixed else f"frozen_stages={frozen_stages}"
    raise ValueError(
        f"{what} without weights would freeze initial values that nobody has trained: give weights=... "
        "(a file or 'imagenet1k_v1'), or train from scratch with norm='bn' or 'gn' and frozen_stages=0"
    )
