"""ClassifierRunConfig: every setting of a classifier's run (`tools.config.settings` has what every run shares)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from resnet_backbone.norm import NORMS, Norm
from resnet_backbone.specs import ResNetSpec, find_spec
from resnet_backbone.weights.sources import SOURCES, check_source_name

from . import settings
from .settings import CommonConfig, EvalConfig, Section


class NetConfig(Section):
    net: str = Field(description="a row of RESNETS")
    stride_on: Literal["3x3", "1x1"] | None = Field(
        None, description="of a bottleneck; 1x1 is the paper's; none: as the net's row has it"
    )
    norm: Norm = Field("bn", description=f"one of {', '.join(NORMS)}")
    recompute: bool = Field(
        False, description="forget activations within the blocks and compute them again: a third slower, less memory"
    )

    @field_validator("net")
    @classmethod
    def _known(cls, name: str) -> str:
        find_spec(name)
        return name

    @property
    def spec(self) -> ResNetSpec:
        row = find_spec(self.net)
        return row if self.stride_on is None else replace(row, stride_on=self.stride_on)


class LabelledSplitConfig(Section):
    images: Path = Field(description="folder of one folder a class, a .zip of one, or CIFAR-10's python batches")
    part: str = Field("", description="folder within images (train, test); of CIFAR-10's batches train or test")
    class_index: Path | None = Field(
        None, description="JSON of folder -> label; none: the folders, in alphabetical order, are all the classes"
    )
    max_images: int | None = Field(None, ge=1, description="images; this many, spread evenly over the classes")


class LabelledDataConfig(Section):
    train: LabelledSplitConfig | None = Field(None, description="what to train on")
    val: LabelledSplitConfig | None = Field(None, description="what to score on")
    shuffle_labels: bool = Field(
        False, description="deal the training labels out at random: the test score must then stay at chance"
    )
    keep_decoded: bool = Field(False, description="keep every decoded image in memory: for sets of CIFAR's size")
    on_bad_image: Literal["stop", "skip"] = Field("stop", description="a corrupt image")
    workers: int = Field(2, ge=0, description="loader processes for each training process, 0 in the process itself")


class CropConfig(Section):
    short_side_px: tuple[int, int] | None = Field(
        (256, 480), description="px; from and to, one is drawn per training image; none keeps its size"
    )
    pad_px: int = Field(0, ge=0, description="px; added to each side of a training image, of the mean colour")
    crop_px: int = Field(224, ge=1, description="px; side of the random crops, and of 1-crop's and 10-crop's")
    flip_probability: float = Field(0.5, ge=0, le=1, description="chance of a horizontal flip")
    colour_pca_std: float = Field(0.1, ge=0, description="of the shift along ImageNet's colour axes; 0: none")
    test_short_side_px: int | None = Field(
        256, ge=1, description="px; before 1-crop's and 10-crop's crops; none keeps the image's size"
    )

    @model_validator(mode="after")
    def _sides(self) -> CropConfig:
        low, high = self.short_side_px or (self.crop_px, self.crop_px)
        if low + 2 * self.pad_px < self.crop_px or low > high:
            raise ValueError(
                f"short_side_px={list(self.short_side_px or ())}: give from and to, at least crop_px={self.crop_px} "
                f"less the padding of {self.pad_px} px on both sides"
            )
        if self.test_short_side_px is not None and self.test_short_side_px < self.crop_px:
            raise ValueError(f"test_short_side_px={self.test_short_side_px} is smaller than crop_px={self.crop_px}")
        return self


class LabelledEvalConfig(EvalConfig):
    views: Literal["1-crop", "10-crop", "multi-scale"] = Field(
        "1-crop", description="centre; corners, centre and flips; the whole image and its flip at scales_px"
    )
    scales_px: tuple[int, ...] = Field(
        (224, 256, 384, 480, 640), min_length=1, description="px; multi-scale's short sides"
    )
    batch_size: int = Field(64, ge=1, description="images at a time (multi-scale takes them singly)")


class ClassifierRunConfig(CommonConfig):
    """`model` is a row of `RESNETS`, or a mapping with `net` and what differs from it."""

    bare_model = "net"
    renamed: ClassVar = {"eval.views": "eval.crops"}

    model: NetConfig = Field(description="the net")
    weights: str | None = Field(None, description="file, run or published name to start from; none: from scratch")
    weights_source: str | None = Field(
        None, description=f"whose they are, where the file does not tell: {', '.join(SOURCES)}"
    )
    allow_missing: tuple[str, ...] = Field((), description="patterns of tensors (fc.*) that may stay at initial values")
    data: LabelledDataConfig = Field(default_factory=lambda: LabelledDataConfig())
    input: CropConfig = Field(default_factory=lambda: CropConfig())
    eval: LabelledEvalConfig = Field(default_factory=lambda: LabelledEvalConfig())

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            values = {**values, "model": {"net": values["model"]}}
        return values

    @model_validator(mode="after")
    def _weights(self) -> ClassifierRunConfig:
        if self.weights_source is not None:
            check_source_name(self.weights_source)
        if self.weights is None and self.model.norm in ("frozen_bn", "bn_eval"):
            raise ValueError(f"model.norm={self.model.norm} without weights freezes initial values: use norm: bn")
        return self


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> ClassifierRunConfig:
    """As `settings.load`. Raises `ConfigError`."""
    return settings.load(ClassifierRunConfig, path, overrides)
