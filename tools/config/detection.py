"""RunConfig: every setting of a detector's run (`tools.config.settings` has what every run shares, and the loader)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from heads.conventions import CONVENTIONS
from heads.mask_head import MaskHeadSpec
from heads.recipes import DETECTORS, DetectorRecipe
from resnet_backbone.errors import did_you_mean
from resnet_backbone.weights.sources import SOURCES, check_source_name

from . import settings
from .settings import CommonConfig, Section, TrainConfig, merge


class SplitConfig(Section):
    images: Path = Field(description="folder of the images")
    annotations: Path = Field(description="COCO instances JSON")
    objects: tuple[int, int] | None = Field(None, description="objects; only images with this many, from and to")
    max_images: int | None = Field(None, ge=1, description="images; only the first by id (of those)")


class DataConfig(Section):
    train: SplitConfig | None = Field(None, description="what to train on")
    val: SplitConfig | None = Field(None, description="what to score on")
    empty_images: Literal["drop", "keep"] = Field("drop", description="training images without boxes")
    min_box_px: float = Field(0.0, ge=0, description="px; boxes with a side of this or less are dropped (with a count)")
    on_bad_image: Literal["stop", "skip"] = Field("stop", description="a missing or corrupt image")
    workers: int = Field(2, ge=0, description="loader processes for each training process, 0 in the process itself")


class InputConfig(Section):
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


class DetectorTrainConfig(TrainConfig):
    group_by_aspect: bool = Field(True, description="keep tall and wide images in separate batches")


def _model_settings() -> Iterator[tuple[str, str]]:
    yield "model.recipe", f"required; one of {', '.join(DETECTORS)}"
    yield from _recipe_settings(asdict(DetectorRecipe(mask=MaskHeadSpec())), "model.")


class RunConfig(CommonConfig):
    """`model` is a recipe's name, or a mapping with `recipe` and what differs from it."""

    bare_model = "recipe"
    described: ClassVar = {"model": _model_settings}

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
    train: DetectorTrainConfig = Field(default_factory=lambda: DetectorTrainConfig())

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        if isinstance(values, dict) and "model" in values:
            values = {**values, "model": resolve_recipe(values["model"])}
        return values

    @model_validator(mode="after")
    def _weights(self) -> RunConfig:
        if self.backbone_source is not None:
            check_source_name(self.backbone_source)
        if self.backbone_weights is None and self.init_from is None and self.model.norm in ("frozen_bn", "bn_eval"):
            raise ValueError(
                f"model.norm={self.model.norm} without backbone_weights freezes initial values: "
                "give weights, or norm: bn"
            )
        return self


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """As `settings.load`. Raises `ConfigError`."""
    return settings.load(RunConfig, path, overrides)


def resolve_recipe(value: Any) -> Any:
    """A recipe's name, or {"recipe": name, **overrides}, or a whole recipe -> a mapping for `DetectorRecipe`."""
    if isinstance(value, str):
        value = {"recipe": value}
    if not isinstance(value, dict) or "recipe" not in value:
        return value
    overrides = {key: part for key, part in value.items() if key != "recipe"}
    if value["recipe"] not in DETECTORS:
        raise ValueError(f"model.recipe={value['recipe']!r} is no detector: {did_you_mean(value['recipe'], DETECTORS)}")
    recipe = asdict(DETECTORS[value["recipe"]])
    if isinstance(named := overrides.get("conventions"), str):
        if named not in CONVENTIONS:
            raise ValueError(f"model.conventions={named!r} is nobody's: {did_you_mean(named, CONVENTIONS)}")
        overrides["conventions"] = asdict(CONVENTIONS[named])
    if isinstance(overrides.get("mask"), dict) and recipe["mask"] is None:
        recipe["mask"] = asdict(MaskHeadSpec())
    return merge(recipe, overrides)


def _recipe_settings(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _recipe_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value}; as in heads ({prefix}{key} of the recipe)"
