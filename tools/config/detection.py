"""Settings of a detection run. `tools.config.settings` has those that every kind of run shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from heads.conventions import CONVENTIONS
from heads.images import MAX_PIXELS
from heads.mask_head import MaskHeadSpec
from heads.recipes import DETECTORS, DetectorRecipe
from resnet_backbone.build import check_frozen_has_weights
from resnet_backbone.errors import did_you_mean
from resnet_backbone.plain import to_plain
from resnet_backbone.weights.sources import SOURCES, check_source_name

from . import settings
from .recipe_help import recipe_settings
from .settings import CommonConfig, EvalConfig, Section, TrainConfig, merge

ScoringBackend = Literal["auto", "pycocotools", "hotcoco"]
MIN_SIDE_PX = 32  # the stride of C5


class SplitConfig(Section):
    """The images of one split, in COCO's format."""

    images: Path = Field(description="folder of the images")
    annotations: Path = Field(description="COCO instances JSON")
    objects: tuple[int, int] | None = Field(
        None, description="only images with this many objects, smallest and largest number; none: all"
    )
    max_images: int | None = Field(None, ge=1, description="number of images, the first by id; none: all")


class DataConfig(Section):
    """Training and validation images, and how they are read. `data: FOLDER` is short for `data: {folder: FOLDER}`."""

    folder: Path | None = Field(
        None, description="data set of any known format, in place of train and val; the format is recognised"
    )
    train: SplitConfig | None = Field(None, description="training images")
    val: SplitConfig | None = Field(None, description="validation images")
    val_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="fraction of the training images to validate on, if there is no validation split; none: 0.2 with "
        "data.folder, else no validation",
    )
    split_seed: int = Field(0, ge=0, description="random seed of the split that val_fraction makes")
    classes: dict[str, tuple[str, ...]] | None = Field(
        None, description="classes to use: a list of names, or {new_name: [old names to merge]}; none: all"
    )
    empty_images: Literal["drop", "keep"] = Field("drop", description="training images without boxes")
    min_box_px: float = Field(0.0, ge=0, description="px; boxes with a side of this length or less are dropped")
    on_bad_image: Literal["stop", "skip"] = Field("stop", description="what to do if an image is missing or damaged")
    on_bad_annotation: Literal["stop", "drop"] = Field(
        "stop", description="what to do about malformed annotations (wrong types, lengths or sizes, not finite)"
    )
    box_format: Literal[
        "auto", "xywh", "xyxy", "cxcywh", "xywh_fraction", "xyxy_fraction", "cxcywh_fraction", "outline"
    ] = Field(
        "auto",
        description="how bbox is read; auto: as COCO's xywh, refused if most boxes fit another format better; outline: "
        "the box of the outline",
    )
    crowds: Literal["auto", "crowds", "objects"] = Field(
        "auto", description="how iscrowd is read; auto: as objects in a class that has nothing else"
    )
    outside_images: bool = Field(False, description="read images whose file_name leaves the image folder")
    max_image_mpx: float = Field(
        MAX_PIXELS / 1e6,
        gt=0,
        description="megapixels; larger images are treated as damaged, since a small file can claim a size that "
        "exhausts the memory",
    )
    workers: int = Field(2, ge=0, description="loader processes per training process; 0: load in that process")

    @property
    def max_image_px(self) -> int:
        """The limit in pixels."""
        return round(1e6 * self.max_image_mpx)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        """Expand `data: FOLDER`, and lists of classes."""
        if isinstance(values, (str, Path)):
            values = {"folder": values}
        if not isinstance(values, dict) or values.get("classes") is None:
            return values
        return {**values, "classes": _expand_classes(values["classes"])}

    @model_validator(mode="after")
    def _check_sources(self) -> DataConfig:
        """Require either a folder or splits."""
        if self.folder is not None and (self.train is not None or self.val is not None):
            raise ValueError(
                "folder replaces train and val: set data.train=null and data.val=null, or leave folder out"
            )
        return self


def _expand_classes(value: Any) -> Any:
    """A list of names as a mapping of each name to itself, and a single old name as a list."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)):
        return {str(name): (str(name),) for name in value}
    if isinstance(value, dict):
        return {
            str(new): tuple(map(str, old)) if isinstance(old, (list, tuple)) else (str(new if old is None else old),)
            for new, old in value.items()
        }
    return value


class InputConfig(Section):
    """Sizes of the images, and their augmentation."""

    short_side_px: tuple[int, ...] = Field(
        (640, 672, 704, 736, 768, 800), min_length=1, description="px; short sides, one is drawn per training image"
    )
    long_side_px: int = Field(1333, ge=1, description="px; maximum length of the long side")
    test_short_side_px: int = Field(800, ge=1, description="px; short side for scoring and predicting")
    pad_to_multiple_px: int = Field(32, ge=1, description="px; batches are padded to a multiple of this")
    flip_probability: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    resize: Literal["pillow", "opencv", "torch"] | None = Field(
        None, description="bilinear interpolation of this library; none: as in the preprocessing of the weights"
    )

    @model_validator(mode="after")
    def _check_sides(self) -> InputConfig:
        """Require short sides that the backbone can downsample and that fit the long side."""
        train, test = list(self.short_side_px), self.test_short_side_px
        if min(*train, test) < MIN_SIDE_PX or max(*train, test) > self.long_side_px:
            raise ValueError(
                f"short_side_px and test_short_side_px: short sides {train} and {test} must lie between {MIN_SIDE_PX} "
                f"and long_side_px={self.long_side_px}"
            )
        return self


class DetectorTrainConfig(TrainConfig):
    """Batch size, precision, device and checkpoints."""

    group_by_aspect: bool = Field(True, description="keep images that are taller than wide in batches of their own")
    compile: bool = Field(
        False, description="compile backbone, neck and RPN head with torch.compile, during the first steps"
    )


class DetectorEvalConfig(EvalConfig):
    """Evaluation during and after training."""

    max_detections: int = Field(
        100, ge=10, description="detections of a class that are scored in an image; COCO's AP is defined with 100"
    )
    compile: bool = Field(
        False, description="compile the detector for scoring with torch.compile, which takes about a minute"
    )
    backend: ScoringBackend = Field(
        "auto",
        description="library that scores; auto: hotcoco for scores during training, if it is installed and scores as "
        "pycocotools does in a self-check, and pycocotools for final scores",
    )


class RunConfig(CommonConfig):
    """Settings of a detection run.

    `model` is the name of a recipe in `DETECTORS`, or a mapping of `recipe` and the settings that differ from it.
    """

    bare_model = "recipe"
    described: ClassVar = {"model": recipe_settings}

    model: DetectorRecipe = Field(description="name of a recipe in DETECTORS, or a mapping with `recipe`")
    backbone_weights: str | None = Field(
        "imagenet1k_v1",
        description="weights of the backbone: a file, the folder of a run, or a published name; none: from scratch",
    )
    backbone_source: str | None = Field(
        None, description=f"source of backbone_weights, if the file does not identify it: one of {', '.join(SOURCES)}"
    )
    init_from: Path | None = Field(
        None, description="fine-tune this detector, the folder of a run or a file; replaces backbone_weights"
    )
    allow_missing: tuple[str, ...] = Field(
        (), description="patterns (box_head.*) of tensors that the weights may lack; they keep their initial values"
    )
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    input: InputConfig = Field(default_factory=lambda: InputConfig())
    train: DetectorTrainConfig = Field(default_factory=lambda: DetectorTrainConfig())
    eval: DetectorEvalConfig = Field(default_factory=lambda: DetectorEvalConfig())

    @classmethod
    def inherited(cls, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out the splits of a base that settings over it replace.

        The validation images of one data set do not belong to the training images of another: settings that name other
        training images do not inherit `data.val`, and `data.folder` inherits neither split.

        Args:
            base: nested settings.
            over: nested settings that will be merged over them.

        Returns:
            The base without these splits.
        """
        base = super().inherited(base, over)
        old, new = base.get("data"), over.get("data")
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            return base
        replaced = {"train", "val"} if new.get("folder") is not None else set[str]()
        train = new.get("train")
        if isinstance(train, Mapping) and "images" in train and "val" not in new:
            replaced.add("val")
        if "train" in new or "val" in new:
            replaced.add("folder")
        return {**base, "data": {key: value for key, value in old.items() if key not in replaced}}

    @model_validator(mode="before")
    @classmethod
    def _expand_model(cls, values: Any) -> Any:
        """Replace the name of a recipe by its settings."""
        if isinstance(values, dict) and "model" in values:
            values = {**values, "model": expand_recipe(values["model"])}
        return values

    @model_validator(mode="after")
    def _check_weights(self) -> RunConfig:
        """Check the source, and refuse norms and stages that would be frozen at initial values."""
        if self.backbone_source is not None:
            check_source_name(self.backbone_source)
        has_weights = self.backbone_weights is not None or self.init_from is not None
        check_frozen_has_weights(has_weights, norm=self.model.norm, frozen_stages=self.model.frozen_stages)
        return self


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the configuration of a detection run; arguments and errors as for `settings.load`."""
    return settings.load(RunConfig, path, overrides)


def expand_recipe(value: Any) -> Any:
    """Expand `model` of a configuration to the settings of a whole recipe.

    Args:
        value: the name of a recipe, a mapping of `recipe` and settings that differ from it, or a whole recipe.

    Returns:
        A mapping for `DetectorRecipe`. Anything else is returned as it is, for pydantic to reject.

    Raises:
        ValueError: an unknown recipe or unknown conventions.
    """
    if isinstance(value, str):
        value = {"recipe": value}
    if not isinstance(value, dict) or "recipe" not in value:
        return value
    overrides = {key: part for key, part in value.items() if key != "recipe"}
    if value["recipe"] not in DETECTORS:
        raise ValueError(f"model.recipe={value['recipe']!r} is unknown: {did_you_mean(value['recipe'], DETECTORS)}")
    recipe = to_plain(DETECTORS[value["recipe"]])
    name = overrides.get("conventions")
    if isinstance(name, str):
        if name not in CONVENTIONS:
            raise ValueError(f"model.conventions={name!r} is unknown: {did_you_mean(name, CONVENTIONS)}")
        overrides["conventions"] = to_plain(CONVENTIONS[name])
    if isinstance(overrides.get("mask"), dict) and recipe["mask"] is None:
        recipe["mask"] = to_plain(MaskHeadSpec())
    return merge(recipe, overrides)
