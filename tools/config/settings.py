"""Settings: the sections that every kind of run has, and the strict loader.

A YAML file names only what differs from the defaults; `--set a.b=c` overrides it. Unknown keys, wrong types and
impossible values are refused by name, with the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resnet_backbone.errors import did_you_mean


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names every wrong setting and its mend."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class OptimiserConfig(Section):
    kind: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    lr: float = Field(0.02, gt=0, description="learning rate after warm-up, for reference_batch images a step")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum; AdamW's beta1")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's memory of squared gradients; lower for short runs")
    weight_decay: float = Field(1e-4, ge=0, description="on everything but norms")
    decay_norms: bool = Field(False, description="weight decay on the norms too, as in the ResNet paper")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient; none does not clip")


class ScheduleConfig(Section):
    epochs: float | None = Field(None, gt=0, description="passes over the images; give this or iters")
    iters: int | None = Field(None, ge=1, description="optimiser steps; give this or epochs")
    kind: Literal["step", "cosine", "plateau"] = Field("step", description="how the learning rate falls")
    decay_at: tuple[float, ...] = Field((2 / 3, 8 / 9), description="fractions of the run where `step` decays")
    decay_factor: float = Field(0.1, gt=0, lt=1, description="what `step` and `plateau` multiply by")
    plateau_patience: int = Field(5, ge=1, description="scorings without a better one before `plateau` decays")
    warmup_iters: int = Field(1000, ge=0, description="steps of warm-up")
    warmup_factor: float = Field(0.001, ge=0, le=1, description="fraction of lr where warm-up begins")
    warmup_kind: Literal["linear", "constant"] = Field("linear", description="constant: warmup_factor * lr throughout")
    auto_scale: bool = Field(False, description="scale lr, iters and warm-up from reference_batch to batch_size")
    reference_batch: int = Field(16, ge=1, description="images a step that lr and iters are meant for")

    @model_validator(mode="after")
    def _length(self) -> ScheduleConfig:
        if (self.epochs is None) == (self.iters is None):
            raise ValueError(f"epochs={self.epochs} and iters={self.iters}: give exactly one of them")
        if any(not 0 < at < 1 for at in self.decay_at) or list(self.decay_at) != sorted(self.decay_at):
            raise ValueError(f"decay_at={list(self.decay_at)}: give rising fractions of the run between 0 and 1")
        return self


class TrainConfig(Section):
    batch_size: int = Field(16, ge=1, description="images a step over all processes")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are summed into one step")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32", description="auto: bf16 where the hardware multiplies it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    seed: int = Field(0, ge=0, description="of weights, order, augmentation and sampling")
    checkpoint_every_iters: int = Field(1000, ge=1, description="steps between checkpoints")
    log_every_iters: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")


class EvalConfig(Section):
    every_epochs: int | None = Field(None, ge=1, description="epochs between scorings; none scores at the end")
    batch_size: int = Field(1, ge=1, description="images at a time")


class CommonConfig(Section):
    """What every kind of run has.

    `bare_model`: which setting of `model` is meant where `model` is a name alone; `described`: the settings of a field
    that is no section, for `--help`.
    """

    bare_model: ClassVar[str]
    described: ClassVar[Mapping[str, Callable[[], Iterator[tuple[str, str]]]]] = {}

    out: Path = Field(description="the run's folder")
    optimiser: OptimiserConfig = Field(default_factory=lambda: OptimiserConfig())
    schedule: ScheduleConfig = Field(description="epochs or iters, warm-up, decay")
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig())

    @model_validator(mode="after")
    def _fits_together(self) -> CommonConfig:
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} must be a multiple of accumulate={self.train.accumulate}"
            )
        if self.schedule.kind == "plateau" and self.eval.every_epochs is None:
            raise ValueError("schedule.kind=plateau waits for scores: set eval.every_epochs")
        return self


Config = TypeVar("Config", bound=CommonConfig)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load(kind: type[Config], path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """A YAML file and "a.b=c" overrides -> a configuration. Raises `ConfigError`, naming every wrong setting."""
    values: Any = {}
    if path is not None:
        if not Path(path).is_file():
            near = did_you_mean(Path(path).name, [p.name for p in Path(path).parent.glob("*.yaml")])
            raise ConfigError(f"no configuration at {path}: {near}")
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must be a mapping of settings, it is a {type(values).__name__}")
    for override in overrides:
        values = merge_override(values, override, kind.bare_model)
    return validate(values, kind)


def merge_override(values: Mapping[str, Any], override: str, bare_model: str) -> dict[str, Any]:
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
        values = {**values, "model": {bare_model: values["model"]}}
    for part in reversed(parts):
        nested = {part: nested}
    return merge(values, nested)


def validate(values: Mapping[str, Any], kind: type[Config]) -> Config:
    """Raises `ConfigError`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(_explain(e, kind) for e in error.errors())
        raise ConfigError(f"the configuration cannot be used:\n{lines}") from error


def _explain(error: Any, kind: type[CommonConfig]) -> str:
    where = [str(part) for part in error["loc"] if not str(part)[:1].isupper()]  # a class of a union is no setting
    name = ".".join(where) or "configuration"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys = [key for key, _ in settings(kind)]
        siblings = {key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == ".".join(where[:-1])}
        siblings |= {key.split(".")[0] for key in keys} if len(where) == 1 else set()
        return f"  {name}: no such setting: {did_you_mean(where[-1], sorted(siblings))}"
    if error["type"] == "literal_error":
        return f"  {name}: got {error['input']!r}: {error['msg'].replace('Input should be', 'give')}"
    message = error["msg"].removeprefix("Value error, ")
    return f"  {name}: {message}" + ("" if isinstance(error["input"], dict) else f" (got {error['input']!r})")


def to_yaml(config: CommonConfig) -> str:
    """The resolved configuration; loading it again gives the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def settings(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting as (dotted name, "default; description"), for `--help`."""
    described = kind.described if issubclass(kind, CommonConfig) else {}
    for name, info in kind.model_fields.items():
        section = _section(info.annotation)
        if section is not None:
            yield from settings(section, f"{prefix}{name}.")
        elif name in described:
            yield from described[name]()
        else:
            default = "required" if info.is_required() else info.default
            yield f"{prefix}{name}", f"{'none' if default in (None, '') else default}; {info.description}"


def _section(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
