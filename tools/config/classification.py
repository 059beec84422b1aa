"""Settings of a classification run. `tools.config.settings` has those that every kind of run shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from resnet_backbone.build import check_frozen_has_weights
from resnet_backbone.norm import NORMS, Norm
from resnet_backbone.specs import ResNetSpec, find_spec
from resnet_backbone.weights.sources import SOURCES, check_source_name

from . import settings
from .settings import CommonConfig, EvalConfig, Section


class NetConfig(Section):
    """The net."""

    net: str = Field(description="row of RESNETS")
    stride_on: Literal["3x3", "1x1"] | None = Field(
        None, description="convolution of a bottleneck that has the stride; the paper: 1x1; none: as in RESNETS"
    )
    norm: Norm = Field("bn", description=f"one of {', '.join(NORMS)}")
    recompute: bool = Field(
        False, description="gradient checkpointing of the blocks: less memory, about a third slower"
    )

    @field_validator("net")
    @classmethod
    def _check_net(cls, name: str) -> str:
        find_spec(name)
        return name

    @property
    def spec(self) -> ResNetSpec:
        """The row of `RESNETS` with the stride placement of `stride_on`."""
        row = find_spec(self.net)
        return row if self.stride_on is None else replace(row, stride_on=self.stride_on)


class LabelledSplitConfig(Section):
    """The images of one split."""

    images: Path = Field(
        description="folder with one folder per class, a .zip of one, or the folder of CIFAR-10's python batches"
    )
    part: str = Field("", description="folder within images (train, test); for CIFAR-10's batches train or test")
    class_index: Path | None = Field(
        None, description="JSON file of class folder -> label; none: the class folders in alphabetical order"
    )
    max_images: int | None = Field(None, ge=1, description="number of images, evenly spaced over the split; none: all")


class LabelledDataConfig(Section):
    """Training and validation images, and how they are read."""

    train: LabelledSplitConfig | None = Field(None, description="training images")
    val: LabelledSplitConfig | None = Field(None, description="validation images")
    shuffle_labels: bool = Field(
        False, description="permute the training labels at random, as a control: the test score must stay at chance"
    )
    keep_decoded: bool = Field(False, description="keep decoded images in memory, for data sets of the size of CIFAR")
    on_bad_image: Literal["stop", "skip"] = Field("stop", description="what to do when an image cannot be read")
    workers: int = Field(2, ge=0, description="loader processes per training process; 0: load in that process")


class CropConfig(Section):
    """Augmentation of training images, and the size of the test crops."""

    short_side_px: tuple[int, int] | None = Field(
        (256, 480), description="px; smallest and largest short side, drawn per training image; none keeps the size"
    )
    pad_px: int = Field(0, ge=0, description="px; padding of every side of a training image, with the mean colour")
    crop_px: int = Field(224, ge=1, description="px; side of training crops and of the crops of 1-crop and 10-crop")
    flip_probability: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    colour_pca_std: float = Field(
        0.1, ge=0, description="standard deviation of the shift along ImageNet's colour axes; 0: none"
    )
    test_short_side_px: int | None = Field(
        256, ge=1, description="px; short side before 1-crop and 10-crop; none keeps the size of the image"
    )

    @model_validator(mode="after")
    def _check_sides(self) -> CropConfig:
        """Require that crops fit the images that they are cut from."""
        low, high = self.short_side_px or (self.crop_px, self.crop_px)
        if low + 2 * self.pad_px < self.crop_px or low > high:
            raise ValueError(
                f"short_side_px={list(self.short_side_px or ())}: give the smallest and the largest side; the smallest "
                f"plus padding, {low} + 2 * {self.pad_px} px, must be at least crop_px={self.crop_px}"
            )
        if self.test_short_side_px is not None and self.test_short_side_px < self.crop_px:
            raise ValueError(
                f"test_short_side_px={self.test_short_side_px} is smaller than crop_px={self.crop_px}: set it to at "
                "least crop_px, or to null to keep the size of the images"
            )
        return self


class LabelledEvalConfig(EvalConfig):
    """Evaluation during and after training."""

    crops: Literal["1-crop", "10-crop", "multi-scale"] = Field(
        "1-crop",
        description="1-crop: centre; 10-crop: corners, centre and their flips; multi-scale: whole image and its flip",
    )
    scales_px: tuple[int, ...] = Field(
        (224, 256, 384, 480, 640), min_length=1, description="px; short sides of multi-scale"
    )
    batch_size: int = Field(64, ge=1, description="images per batch (multi-scale: always 1)")


class ClassifierRunConfig(CommonConfig):
    """Settings of a classification run.

    `model` is the name of a row of `RESNETS`, or a mapping of `net` and the settings that differ from the defaults.
    """

    bare_model = "net"
    renamed: ClassVar = {"eval.views": "eval.crops"}

    model: NetConfig = Field(description="the net")
    weights: str | None = Field(
        None, description="initial weights: a file, the folder of a run, or a published name; none: train from scratch"
    )
    weights_source: str | None = Field(
        None, description=f"source of the weights, if the file does not identify it: one of {', '.join(SOURCES)}"
    )
    allow_missing: tuple[str, ...] = Field(
        (), description="patterns (fc.*) of tensors that the weights may lack; they keep their initial values"
    )
    data: LabelledDataConfig = Field(default_factory=lambda: LabelledDataConfig())
    input: CropConfig = Field(default_factory=lambda: CropConfig())
    eval: LabelledEvalConfig = Field(default_factory=lambda: LabelledEvalConfig())

    @model_validator(mode="before")
    @classmethod
    def _expand_bare_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            values = {**values, "model": {"net": values["model"]}}
        return values

    @model_validator(mode="after")
    def _check_weights(self) -> ClassifierRunConfig:
        """Check the source, and refuse to freeze the statistics of norms at initial values."""
        if self.weights_source is not None:
            check_source_name(self.weights_source)
        check_frozen_has_weights(self.weights is not None, norm=self.model.norm, frozen_stages=0)
        return self


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> ClassifierRunConfig:
    """Load a classification run's configuration; arguments, result and errors are those of `settings.load`."""
    return settings.load(ClassifierRunConfig, path, overrides)
