"""What detection jobs start from: augmented training images, and detectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
from rich.console import Console

from heads.build import assemble, check_frozen_head_norms, empty_backbone, fine_tune
from heads.detector import RCNN
from heads.files import load_detector, read_detector
from heads.keymaps import layout_of
from heads.predictor import Predictor
from heads.recipes import DetectorRecipe
from resnet_backbone import WeightReport, load_weights
from resnet_backbone.build import open_weights
from resnet_backbone.weights.read import WeightFile
from tools.config.detection import RunConfig
from tools.console import CONSOLE
from tools.data.coco import CocoData, ImageRecord
from tools.data.loader import TrainingImages, read_checked
from tools.report.weights import weights_table

from . import runs


def image_reader(config: RunConfig) -> Callable[[ImageRecord], np.ndarray]:
    """The function that reads and checks the image of a record, with the limit `data.max_image_mpx`."""
    return partial(read_checked, max_pixels=config.data.max_image_px)


def training_images(config: RunConfig, data: CocoData, resize: str = "pillow") -> TrainingImages:
    """Make the data set of augmented training images.

    Args:
        config: the settings; `input`, `data.on_bad_image` and `train.seed` are used.
        data: the training split.
        resize: the interpolation, as `Preprocess.resize`.

    Returns:
        A data set of images, (3, h, w) uint8, and `Targets`.
    """
    # not at the top: albumentations takes a second to import, and scoring and predicting do not need it
    from tools.data.augment import Augment

    settings, masks = config.input, config.model.mask is not None
    augment = Augment(settings.short_side_px, settings.long_side_px, settings.flip_probability, masks, resize)
    return TrainingImages(
        data, augment, seed=config.train.seed, on_bad_image=config.data.on_bad_image, read=image_reader(config)
    )


def make_detector(config: RunConfig, data: CocoData, console: Console = CONSOLE) -> RCNN:
    """Make the detector that a run starts from: with random weights, a pretrained backbone, or another run's weights.

    Which tensors are loaded and which keep their initial values is printed, and written to weights.txt in `config.out`.

    Args:
        config: the settings; `model`, `backbone_weights`, `backbone_source`, `init_from`, `allow_missing` and `input`
            are used.
        data: the training split; its classes become those of the detector.
        console: where to print; a quiet one writes no file either.

    Returns:
        The detector, on the CPU.

    Raises:
        InvalidValue: norms of the heads would be frozen at initial values.
        UserError: as for `load_weights`, `load_detector` and `fine_tune`.
    """
    backbone, report = empty_backbone(config.model), WeightReport()
    loaded = set[str]()
    if config.init_from is None:
        check_frozen_head_norms(config.model)
        if config.backbone_weights is not None:
            file = open_weights(config.backbone_weights, net=config.model.backbone)
            runs.note_missing_certificate(file, console)
            patterns = [pattern.removeprefix("backbone.") for pattern in config.allow_missing]
            report = load_weights(backbone, file, allow_missing=patterns, source=config.backbone_source)
            loaded = {f"backbone.{key}" for key in report.loaded}
    detector = assemble(config.model, len(data.class_names), backbone)
    detector.class_names = data.class_names
    if config.init_from is not None:
        report = _fine_tune_from(config.init_from, detector, config, console)
        loaded = set(report.loaded)
    table = weights_table(
        detector.state_dict(),
        loaded,
        config.init_from or config.backbone_weights,
        partly=report.partly_loaded,
        notes=report.notes,
    )
    runs.print_and_save(table, config.out / "weights.txt", console)
    detector.preprocess = replace(
        detector.preprocess,
        resize=config.input.resize or detector.preprocess.resize,
        short_side_px=config.input.test_short_side_px,
        long_side_px=config.input.long_side_px,
        pad_to_multiple_px=config.input.pad_to_multiple_px,
    )
    return detector


def _fine_tune_from(path: Path, detector: RCNN, config: RunConfig, console: Console) -> WeightReport:
    """Load the class-independent tensors of another detector, and the rows of the classes that both have."""
    file = open_weights(path) if path.exists() else None
    if file is not None and file.meta is None and layout_of(file.state) is not None:  # of another project
        return fine_tune(detector, file, allow_missing=config.allow_missing, source=config.backbone_source)
    other, recipe = _load_detector(path if file is None else file, console)
    names = other.class_names
    report = fine_tune(detector, other.state_dict(), allow_missing=config.allow_missing, class_names=names)
    detector.preprocess = other.preprocess
    return replace(report, notes=(*report.notes, *_differing(recipe, config.model)))


def _differing(theirs: DetectorRecipe, ours: DetectorRecipe) -> list[str]:
    """A sentence on what the weights were trained with and the model is built without, though the tensors fit."""
    pairs = {
        f"conventions.{name}": (value, getattr(ours.conventions, name))
        for name, value in vars(theirs.conventions).items()
    }
    if ours.spec.block.expansion > 1:  # a basic block has its stride on its first convolution
        pairs["stride_on"] = theirs.stride_on, ours.stride_on
    differing = [f"model.{name}={one} (here {two})" for name, (one, two) in pairs.items() if one != two]
    return [f"init_from was trained with other settings: {', '.join(differing)}"] if differing else []


def open_detector(run_or_weights: str | PathLike[str], console: Console = CONSOLE) -> RCNN:
    """Load a detector, and print a line if its file has no certificate.

    Args:
        run_or_weights: the folder of a run, or a file, as for `load_detector`.
        console: where to print.

    Returns:
        The detector, on the CPU.

    Raises:
        UserError: as for `load_detector`.
    """
    return _load_detector(run_or_weights, console)[0]


def fast_predictor(detector: RCNN, precision: str, compile: bool, console: Console = CONSOLE) -> Predictor:
    """Make the predictor of scoring and predicting. How long compiling took is printed.

    Args:
        detector: the detector, on its device.
        precision: as for `Predictor`.
        compile: whether to compile it.
        console: where to print.

    Returns:
        The predictor, with a copy of the detector that is made for inference.
    """
    predictor = Predictor(detector, precision=precision, fast=True, compile=compile)
    if predictor.detector.compile_s is not None:
        console.print(f"compiled in {predictor.detector.compile_s:.0f} s")
    return predictor


def _load_detector(run_or_weights: str | PathLike[str] | WeightFile, console: Console) -> tuple[RCNN, DetectorRecipe]:
    file = read_detector(run_or_weights)
    runs.note_missing_certificate(file, console)
    return load_detector(file)
