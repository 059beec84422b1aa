"""RunConfig: every setting of a run, and the strict loader.

A YAML file names only what differs from the defaults below; `--set a.b=c` overrides it. Unknown keys, wrong types and
impossible values are refused by name, with the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heads.build import DETECTORS, DetectorRecipe
from heads.conventions import CONVENTIONS
from heads.mask_head import MaskHeadSpec
from resnet_backbone.suggest import unknown
from resnet_backbone.weights.sources import SOURCES, require_source


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names every wrong setting and its mend."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class SplitConfig(_Section):
    images: Path = Field(description="folder of the images")
    annotations: Path = Field(description="COCO instances JSON")
    objects: tuple[int, int] | None = Field(None, description="objects; only images with this many, from and to")
    max_images: int | None = Field(None, ge=1, description="images; only the first by id (of those)")


class DataConfig(_Section):
    train: SplitConfig | None = Field(None, description="what to train on")
    val: SplitConfig | None = Field(None, description="what to score on")
    empty_images: Literal["drop", "keep"] = Field("drop", description="training images without boxes")
    min_box_px: float = Field(0.0, ge=0, description="px; boxes with a side of this or less are dropped (with a count)")
    on_bad_image: Literal["stop", "skip"] = Field("stop", description="a missing or corrupt image")
    workers: int = Field(2, ge=0, description="loader processes for each training process, 0 in the process itself")


class InputConfig(_Section):
    short_side_px: tuple[int, ...] = Field(
        (640, 672, 704, 736, 768, 800), min_length=1, description="px; one is drawn per image"
    )
    long_side_px: int = Field(1333, ge=1, description="px; cap on the long side")
    test_short_side_px: int = Field(800, ge=1, description="px; the short side when scoring and predicting")
    pad_to_multiple_px: int = Field(32, ge=1, description="px; batches are padded to a multiple of this")
    flip_probability: float = Field(0.5, ge=0, le=1, description="chance of a horizontal flip")
    resize: Literal["pillow", "opencv", "torch"] | None = Field(
        None, description="whose bilinear filter, as in Preprocess.resize; none: as the weights know it"
    )

    @model_validator(mode="after")
    def _sides(self) -> InputConfig:
        sides = (*self.short_side_px, self.test_short_side_px)
        if min(sides) < 32 or max(sides) > self.long_side_px:
            raise ValueError(
                f"short sides {list(self.short_side_px)} and {self.test_short_side_px} must lie between 32 and "
                f"long_side_px={self.long_side_px}"
            )
        return self


class OptimiserConfig(_Section):
    kind: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    lr: float = Field(0.02, gt=0, description="learning rate after warm-up, for reference_batch images a step")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum; AdamW's beta1")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's memory of squared gradients; lower for short runs")
    weight_decay: float = Field(1e-4, ge=0, description="on everything but norms")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient; none does not clip")


class ScheduleConfig(_Section):
    epochs: float | None = Field(None, gt=0, description="passes over the images; give this or iters")
    iters: int | None = Field(None, ge=1, description="optimiser steps; give this or epochs")
    kind: Literal["step", "cosine"] = Field("step", description="how the learning rate falls")
    decay_at: tuple[float, ...] = Field((2 / 3, 8 / 9), description="fractions of the run where `step` decays")
    decay_factor: float = Field(0.1, gt=0, lt=1, description="what `step` multiplies by")
    warmup_iters: int = Field(1000, ge=0, description="steps of linear warm-up")
    warmup_factor: float = Field(0.001, ge=0, le=1, description="fraction of lr where warm-up begins")
    auto_scale: bool = Field(False, description="scale lr, iters and warm-up from reference_batch to batch_size")
    reference_batch: int = Field(16, ge=1, description="images a step that lr and iters are meant for")

    @model_validator(mode="after")
    def _length(self) -> ScheduleConfig:
        if (self.epochs is None) == (self.iters is None):
            raise ValueError(f"epochs={self.epochs} and iters={self.iters}: give exactly one of them")
        if any(not 0 < at < 1 for at in self.decay_at) or list(self.decay_at) != sorted(self.decay_at):
            raise ValueError(f"decay_at={list(self.decay_at)}: give rising fractions of the run between 0 and 1")
        return self


class TrainConfig(_Section):
    batch_size: int = Field(16, ge=1, description="images a step over all processes")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are summed into one step")
    group_by_aspect: bool = Field(True, description="keep tall and wide images in separate batches")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32", description="auto: bf16 where the hardware multiplies it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    seed: int = Field(0, ge=0, description="of weights, order, augmentation and sampling")
    checkpoint_every_iters: int = Field(1000, ge=1, description="steps between checkpoints")
    log_every_iters: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")


class EvalConfig(_Section):
    every_epochs: int | None = Field(None, ge=1, description="epochs between scorings; none scores at the end")
    batch_size: int = Field(1, ge=1, description="images at a time")


class RunConfig(_Section):
    """`model` is a recipe's name, or a mapping with `recipe` and what differs from it."""

    out: Path = Field(description="the run's folder")
    model: DetectorRecipe = Field(description="recipe: a name in DETECTORS; other keys override its settings")
    backbone_weights: str | None = Field(
        "imagenet1k_v1", description="file or published name; none trains from scratch"
    )
    backbone_source: str | None = Field(
        None, description=f"whose they are, where the file does not tell: {', '.join(SOURCES)}"
    )
    init_from: Path | None = Field(None, description="another run or its file, to fine-tune from")
    allow_missing: tuple[str, ...] = Field(
        (), description="patterns of tensors (box_head.*) that may stay at their initial values"
    )
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    input: InputConfig = Field(default_factory=lambda: InputConfig())
    optimiser: OptimiserConfig = Field(default_factory=lambda: OptimiserConfig())
    schedule: ScheduleConfig = Field(description="epochs or iters, warm-up, decay")
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig())

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        if isinstance(values, dict) and "model" in values:
            values = {**values, "model": resolve_recipe(values["model"])}
        return values

    @model_validator(mode="after")
    def _batches(self) -> RunConfig:
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} must be a multiple of accumulate={self.train.accumulate}"
            )
        if self.backbone_source is not None:
            require_source(self.backbone_source)
        if self.backbone_weights is None and self.init_from is None and self.model.norm in ("frozen_bn", "bn_eval"):
            raise ValueError(
                f"model.norm={self.model.norm} without backbone_weights freezes initial values: "
                "give weights, or norm: bn"
            )
        return self


def resolve_recipe(value: Any) -> Any:
    """A recipe's name, or {"recipe": name, **overrides}, or a whole recipe -> a mapping for `DetectorRecipe`."""
    if isinstance(value, str):
        value = {"recipe": value}
    if not isinstance(value, dict) or "recipe" not in value:
        return value
    overrides = {key: part for key, part in value.items() if key != "recipe"}
    if value["recipe"] not in DETECTORS:
        raise ValueError(f"model.recipe={value['recipe']!r} is no detector: {unknown(value['recipe'], DETECTORS)}")
    recipe = asdict(DETECTORS[value["recipe"]])
    if isinstance(named := overrides.get("conventions"), str):
        if named not in CONVENTIONS:
            raise ValueError(f"model.conventions={named!r} is nobody's: {unknown(named, CONVENTIONS)}")
        overrides["conventions"] = asdict(CONVENTIONS[named])
    if isinstance(overrides.get("mask"), dict) and recipe["mask"] is None:
        recipe["mask"] = asdict(MaskHeadSpec())
    return merge(recipe, overrides)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """A YAML file and "a.b=c" overrides -> RunConfig. Raises `ConfigError`, naming every wrong setting."""
    values: Any = {}
    if path is not None:
        if not Path(path).is_file():
            near = unknown(Path(path).name, [p.name for p in Path(path).parent.glob("*.yaml")])
            raise ConfigError(f"no configuration at {path}: {near}")
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must be a mapping of settings, it is a {type(values).__name__}")
    for override in overrides:
        values = merge_override(values, override)
    return validate(values)


def merge_override(values: Mapping[str, Any], override: str) -> dict[str, Any]:
    """One "a.b=c", c read as YAML (numbers, lists, null)."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override!r}: write it as section.key=value")
    try:
        nested: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not YAML ({error})") from error
    parts = key.strip().split(".")
    # `model` may be a bare name: an override inside it makes it a mapping
    if parts[0] == "model" and len(parts) > 1 and isinstance(values.get("model"), str):
        values = {**values, "model": {"recipe": values["model"]}}
    for part in reversed(parts):
        nested = {part: nested}
    return merge(values, nested)


def validate(values: Mapping[str, Any]) -> RunConfig:
    """Raises `ConfigError`."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "the configuration cannot be used:\n" + "\n".join(_explain(e) for e in error.errors())
        ) from error


def _explain(error: Any) -> str:
    where = [str(part) for part in error["loc"] if part not in ("DetectorRecipe",)]
    name = ".".join(where) or "configuration"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        siblings = {key.rpartition(".")[2] for key, _ in settings() if key.rpartition(".")[0] == ".".join(where[:-1])}
        siblings |= {key.split(".")[0] for key, _ in settings()} if len(where) == 1 else set()
        return f"  {name}: no such setting: {unknown(where[-1], sorted(siblings))}"
    if error["type"] == "literal_error":
        return f"  {name}: got {error['input']!r}: {error['msg'].replace('Input should be', 'give')}"
    message = error["msg"].removeprefix("Value error, ")
    return f"  {name}: {message}" + ("" if isinstance(error["input"], dict) else f" (got {error['input']!r})")


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting as (dotted name, "default; description"), for `--help`."""
    for name, info in model.model_fields.items():
        section = _section(info.annotation)
        if section is not None:
            yield from settings(section, f"{prefix}{name}.")
        elif info.annotation is DetectorRecipe:
            yield f"{prefix}{name}.recipe", f"required; one of {', '.join(DETECTORS)}"
            yield from _recipe_settings(asdict(DetectorRecipe(mask=MaskHeadSpec())), f"{prefix}{name}.")
        else:
            default = "required" if info.is_required() else info.default
            yield f"{prefix}{name}", f"{'none' if default is None else default}; {info.description}"


def _section(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _recipe_settings(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _recipe_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value}; as in heads ({prefix}{key} of the recipe)"
