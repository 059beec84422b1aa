"""What detection jobs start from: augmented training images, and detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

from rich.console import Console

from heads.build import assemble, check_frozen_head_norms, empty_backbone, fine_tune
from heads.detector import RCNN
from heads.files import load_detector, read_detector
from resnet_backbone import WeightReport, load_weights
from resnet_backbone.build import open_weights
from resnet_backbone.errors import InvalidValue
from tools.config.detection import RunConfig
from tools.console import CONSOLE
from tools.data.coco import CocoData
from tools.data.loader import TrainingImages
from tools.report.weights import weights_table

from . import runs


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
    return TrainingImages(data, augment, seed=config.train.seed, on_bad_image=config.data.on_bad_image)


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
        InvalidValue: norms of the heads would be frozen at initial values, or `init_from` has as many classes as the
            data in another order.
        UserError: as for `load_weights` and `load_detector`.
    """
    backbone, loaded = empty_backbone(config.model), set[str]()
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
        other = open_detector(config.init_from, console)
        report = fine_tune(detector, other.state_dict(), allow_missing=config.allow_missing)
        loaded, detector.preprocess = set(report.loaded), other.preprocess
        _check_class_order(report, other.class_names, data.class_names)
    weights = config.init_from or config.backbone_weights
    runs.print_and_save(weights_table(detector.state_dict(), loaded, weights), config.out / "weights.txt", console)
    detector.preprocess = replace(
        detector.preprocess,
        resize=config.input.resize or detector.preprocess.resize,
        short_side_px=config.input.test_short_side_px,
        long_side_px=config.input.long_side_px,
        pad_to_multiple_px=config.input.pad_to_multiple_px,
    )
    return detector


def _check_class_order(report: WeightReport, names: Sequence[str], data_names: Sequence[str]) -> None:
    """Refuse class layers that were loaded for classes with other names or in another order."""
    kept_initial = any(key.startswith("box_head.logits") for key in report.kept_initial)
    if not kept_initial and tuple(names) != tuple(data_names):
        raise InvalidValue(
            f"the data and init_from both have {len(data_names)} classes, but with other names or in another order "
            f"({', '.join(data_names[:4])} ... in the data, {', '.join(names[:4])} ... in init_from): give the "
            "categories of the data the same names, and ids in the same order"
        )


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
    file = read_detector(run_or_weights)
    runs.note_missing_certificate(file, console)
    return load_detector(file)[0]
