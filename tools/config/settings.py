"""Settings that every kind of run has, and the strict loader of configuration files.

A YAML file names only what differs from the defaults. It may build on another file with `base: other.yaml`, and
`--set a.b=c` overrides single settings. Unknown keys, wrong types and impossible values are errors that name the
setting and the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from resnet_backbone.errors import InvalidValue, did_you_mean


class ConfigError(InvalidValue):
    """A configuration that cannot be used. The message names every wrong setting and how to fix it."""


class Section(BaseModel):
    """A group of settings. Unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class OptimiserConfig(Section):
    """The optimiser and its hyper-parameters."""

    kind: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    lr: float = Field(
        0.02, gt=0, description="learning rate after warm-up, for schedule.reference_batch images per step"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD, beta1 of AdamW")
    beta2: float = Field(
        0.999, ge=0, lt=1, description="beta2 of AdamW (decay of squared gradients); lower it for short runs"
    )
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of all parameters except those of norms")
    decay_norms: bool = Field(False, description="apply weight decay to norms too, as in the ResNet paper")
    clip_norm: float | None = Field(None, gt=0, description="maximum norm of the whole gradient; none: no clipping")


class ScheduleConfig(Section):
    """Length of the run, learning rate schedule and warm-up."""

    epochs: float | None = Field(None, gt=0, description="epochs (passes over the images); give epochs or iters")
    iters: int | None = Field(None, ge=1, description="optimiser steps; give iters or epochs")
    kind: Literal["step", "cosine", "plateau"] = Field("step", description="learning rate schedule")
    decay_at: tuple[float, ...] = Field(
        (2 / 3, 8 / 9), description="fractions of the run after which `step` lowers the learning rate"
    )
    decay_factor: float = Field(
        0.1, gt=0, lt=1, description="factor that `step` and `plateau` multiply the learning rate by"
    )
    plateau_patience: int = Field(
        5, ge=1, description="evaluations without improvement before `plateau` lowers the learning rate"
    )
    warmup_iters: int = Field(1000, ge=0, description="steps of warm-up; 0: none")
    warmup_factor: float = Field(0.001, ge=0, le=1, description="fraction of lr at the start of warm-up")
    warmup_kind: Literal["linear", "constant"] = Field(
        "linear", description="linear: from warmup_factor * lr to lr; constant: warmup_factor * lr during warm-up"
    )
    auto_scale: bool = Field(
        False, description="scale lr, iters and warmup_iters from reference_batch to train.batch_size"
    )
    reference_batch: int = Field(16, ge=1, description="images per step that lr and iters are given for")

    @model_validator(mode="after")
    def _check_length_and_decays(self) -> ScheduleConfig:
        """Require exactly one of epochs and iters, and increasing decay fractions."""
        if (self.epochs is None) == (self.iters is None):
            advice = "" if self.epochs is None else " (schedule.epochs=null or schedule.iters=null leaves one out)"
            raise ValueError(f"epochs={self.epochs} and iters={self.iters}: give exactly one of them{advice}")
        if any(not 0 < at < 1 for at in self.decay_at) or list(self.decay_at) != sorted(self.decay_at):
            raise ValueError(f"decay_at={list(self.decay_at)}: give rising fractions of the run between 0 and 1")
        return self


class TrainConfig(Section):
    """Batch size, precision, device and checkpoints."""

    batch_size: int = Field(16, ge=1, description="images per step, over all processes")
    accumulate: int = Field(1, ge=1, description="gradient accumulation: batches per step")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "fp32", description="training precision; auto: bf16 where the hardware supports it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if available")
    tf32: bool = Field(
        False,
        description="on CUDA, round the factors of fp32 products to TF32 (10 bits of mantissa), in training and "
        "scoring; faster",
    )
    seed: int = Field(0, ge=0, description="random seed of initial weights, image order, augmentation and sampling")
    checkpoint_every_iters: int = Field(1000, ge=1, description="steps between checkpoints")
    log_every_iters: int = Field(20, ge=1, description="steps between lines of metrics.jsonl")


class EvalConfig(Section):
    """Evaluation during and after training."""

    every_epochs: int | None = Field(None, ge=1, description="epochs between evaluations; none: only after training")
    batch_size: int = Field(1, ge=1, description="images per batch")


class CommonConfig(Section):
    """Settings of every kind of run.

    Attributes:
        bare_model: key of `model` that a bare name stands for: `model: NAME` means `model: {bare_model: NAME}`.
        described: for fields that are no `Section`: a function that yields their settings for `--help`.
        renamed: former dotted names of settings, with the present ones. A former name is an error.
    """

    bare_model: ClassVar[str]
    described: ClassVar[Mapping[str, Callable[[], Iterator[tuple[str, str]]]]] = {}
    renamed: ClassVar[Mapping[str, str]] = {}

    out: Path = Field(description="folder that the run is written to")
    optimiser: OptimiserConfig = Field(default_factory=lambda: OptimiserConfig())
    schedule: ScheduleConfig = Field(description="length of the run (epochs or iters), decay, warm-up")
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig())

    @classmethod
    def inherited(cls, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out settings of a base that make no sense with those that will be merged over it.

        Args:
            base: nested settings.
            over: nested settings that will be merged over them.

        Returns:
            What is inherited: here everything, but for the length of the schedule, which is given in epochs or in
            iters.
        """
        old, new = base.get("schedule"), over.get("schedule")
        lengths = ("epochs", "iters")
        if isinstance(old, Mapping) and isinstance(new, Mapping) and any(new.get(key) is not None for key in lengths):
            return {**base, "schedule": {key: value for key, value in old.items() if key not in lengths or key in new}}
        return dict(base)

    @model_validator(mode="after")
    def _check_sections_agree(self) -> CommonConfig:
        """Check what depends on more than one section."""
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} must be a multiple of accumulate={self.train.accumulate}"
            )
        if self.schedule.kind == "plateau" and self.eval.every_epochs is None:
            raise ValueError("schedule.kind=plateau needs evaluations during training: set eval.every_epochs")
        return self


Config = TypeVar("Config", bound=CommonConfig)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings.

    Args:
        base: settings.
        over: settings that take precedence. Mappings are merged key by key; other values, lists included, replace.

    Returns:
        A new mapping; the arguments are not changed.
    """
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def load(config_class: type[Config], path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration: the file's base, then the file, then the overrides.

    A file names its base with `base: other.yaml`, relative to its own folder; a base may have a base. Between files, a
    bare `model: NAME` changes only which model it is: the other settings of the base's `model` stay. An override
    `model=NAME` replaces `model` as a whole.

    Args:
        config_class: kind of configuration, for example `RunConfig`.
        path: YAML file; None for overrides alone.
        overrides: settings such as "optimiser.lr=0.01", in the order in which they apply.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: a file is missing or not a mapping, its base cannot be used, or a setting is wrong.
    """
    return validate(load_values(config_class, path, overrides), config_class)


def load_values(
    config_class: type[CommonConfig],
    path: Path | str | None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect settings without checking them: a base, a file with its bases, then the overrides.

    Args:
        config_class: kind of configuration, for example `RunConfig`.
        path: YAML file; None for none.
        overrides: settings such as "optimiser.lr=0.01", in the order in which they apply.
        base: nested settings below the file; None for none.

    Returns:
        Nested settings.

    Raises:
        ConfigError: a file is missing or not a mapping, its base cannot be used, or an override is of another form.
    """
    values: dict[str, Any] = dict(base or {})
    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"no configuration at {path}: {_suggest_file(Path(path).parent, Path(Path(path).name))}")
        values = merge(values, _read_with_bases(Path(path), config_class))
    together: dict[str, Any] = {}
    for override in overrides:
        together = merge_override(together, override, config_class.bare_model)
    values = config_class.inherited(values, together)
    for override in overrides:
        values = merge_override(values, override, config_class.bare_model)
    return values


def _read_with_bases(path: Path, config_class: type[CommonConfig], inheritors: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file and merge it over its base; `inheritors` are the files that led to it, to detect cycles."""
    values = _read_mapping(path, inheritors)
    if "base" not in values:
        return values
    base = _base_path(path, values.pop("base"))
    chain = (*inheritors, path)
    if base.resolve() in [file.resolve() for file in chain]:
        cycle = " -> ".join(str(file) for file in (*chain, base))
        raise ConfigError(f"{path}: its base leads back to itself ({cycle}): remove `base` from one of these files")
    inherited = config_class.inherited(_read_with_bases(base, config_class, chain), values)
    bare_model = config_class.bare_model
    return merge(_expand_bare_model(inherited, bare_model), _expand_bare_model(values, bare_model))


def _read_mapping(path: Path, inheritors: tuple[Path, ...]) -> dict[str, Any]:
    name = f"{path} (base of {inheritors[-1]})" if inheritors else str(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    if values is None:  # an empty file
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name} must be a mapping of settings, got a {type(values).__name__}: write lines of `setting: value`"
        )
    return values


def _base_path(path: Path, base: Any) -> Path:
    """The file that `base` of the file `path` names."""
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{path}: base must be the name of one YAML file, got {base!r} ({type(base).__name__}): "
            "write for example `base: coco_1x.yaml`"
        )
    target = path.parent / base
    if not target.is_file():
        raise ConfigError(f"{path}: no base at {target}: {_suggest_file(target.parent, Path(base), path)}")
    return target


def _suggest_file(folder: Path, given: Path, named_in: Path | None = None) -> str:
    """Suggest a YAML file of a folder, written as `given` was, but not the file that names it."""
    files = [file for file in sorted(folder.glob("*.yaml")) if named_in is None or file.resolve() != named_in.resolve()]
    if not files:
        return f"{folder} holds no other .yaml file: correct the path"
    return did_you_mean(given, [given.parent / file.name for file in files])


def _expand_bare_model(values: dict[str, Any], bare_model: str) -> dict[str, Any]:
    if isinstance(values.get("model"), str):
        return {**values, "model": {bare_model: values["model"]}}
    return values


def merge_override(values: Mapping[str, Any], override: str, bare_model: str) -> dict[str, Any]:
    """Apply one override of the command line.

    Args:
        values: settings so far.
        override: "section.key=value"; the value is read as YAML (number, list, mapping, null).
        bare_model: key of `model` that a bare name stands for.

    Returns:
        The settings with the override applied.

    Raises:
        ConfigError: the override is not of this form, or sets `base`.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: write it as section.key=value")
    if parts[0] == "base":
        raise ConfigError(f"--set {override!r}: base can only be set in a YAML file; give that file as CONFIG")
    try:
        nested: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: {text!r} is not YAML ({error})") from error
    if parts[0] == "model" and len(parts) > 1:
        values = _expand_bare_model(dict(values), bare_model)
    for part in reversed(parts):
        nested = {part: nested}
    return merge(values, nested)


def validate(values: Mapping[str, Any], config_class: type[Config]) -> Config:
    """Check settings and fill in the defaults.

    Args:
        values: nested mapping of settings.
        config_class: kind of configuration, for example `RunConfig`.

    Returns:
        The configuration.

    Raises:
        ConfigError: settings are unknown, renamed, missing or wrong; the message has a line for each.
    """
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail, config_class) for detail in error.errors()]
        if "out" not in values and "model" not in values:
            lines.append(
                "  a configuration without out and model is only a base: use a file that names it with `base:`, or "
                "give --set out=FOLDER --set model=NAME"
            )
        raise ConfigError("\n".join(["the configuration cannot be used:", *lines])) from error


def _explain(error: Any, config_class: type[CommonConfig]) -> str:
    """One line for one error of pydantic."""
    unknown = error["type"] in ("extra_forbidden", "unexpected_keyword_argument")
    *parents, last = [str(part) for part in error["loc"]] or [""]
    # pydantic puts the class that it tried for a union into the location; the last part of an unknown key is the key
    parents = [part for part in parents if not part[:1].isupper()]
    path = [*parents, last] if unknown or not last[:1].isupper() else parents
    name = ".".join(path) or "configuration"
    if name in config_class.renamed:
        return f"  {name} is now called {config_class.renamed[name]}: rename it"
    if unknown:
        return f"  {name}: no such setting: {did_you_mean(last, _siblings(path, config_class))}"
    if error["type"] == "missing":
        return f"  {name}: {_missing(name, config_class)}"
    if error["type"] == "literal_error":
        return f"  {name}: got {error['input']!r}: {error['msg'].replace('Input should be', 'give')}"
    message = error["msg"].removeprefix("Value error, ")
    return f"  {name}: {message}" + ("" if isinstance(error["input"], dict) else f" (got {error['input']!r})")


def _siblings(path: list[str], config_class: type[CommonConfig]) -> list[str]:
    """Keys that exist where the unknown key `path` was given."""
    depth = len(path) - 1
    names = [name.split(".") for name, _ in settings(config_class)] + [["base"]]
    return sorted({name[depth] for name in names if name[:depth] == path[:-1] and len(name) > depth})


def _missing(name: str, config_class: type[CommonConfig]) -> str:
    """What a missing setting is, and how to give it."""
    descriptions = {key: text.partition("; ")[2] for key, text in settings(config_class)}
    field = config_class.model_fields.get(name)
    description = descriptions.get(name) or (field.description if field is not None else None)
    setting = f"{name}=VALUE"
    if name == "model":
        setting = "model=NAME"
    elif field is not None and _section(field.annotation) is not None:
        setting = f"{name}.KEY=VALUE"
    what = f" ({description})" if description else ""
    return f"required but missing{what}: add it to the file, or give --set {setting}"


def to_yaml(config: CommonConfig) -> str:
    """Write a configuration as YAML.

    Args:
        config: a validated configuration.

    Returns:
        Every setting, bases and overrides resolved. Loading this text gives an equal configuration.
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def settings(config_class: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """List every setting, for `--help` and error messages.

    Args:
        config_class: a kind of configuration or one section.
        prefix: what to put before every name.

    Yields:
        Dotted name, and "default; description".
    """
    described = config_class.described if issubclass(config_class, CommonConfig) else {}
    for name, field in config_class.model_fields.items():
        section = _section(field.annotation)
        if section is not None:
            yield from settings(section, f"{prefix}{name}.")
        elif name in described:
            yield from described[name]()
        else:
            default = "required" if field.is_required() else field.default
            yield f"{prefix}{name}", f"{'none' if default in (None, '') else default}; {field.description}"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class in a field's annotation (`X` or `X | None`), if any."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
