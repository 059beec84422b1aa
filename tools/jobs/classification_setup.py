"""Data and nets of classification jobs, as the settings describe them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from resnet_backbone import Preprocess, ResNetClassifier, load_weights
from resnet_backbone.build import from_metadata, open_weights
from resnet_backbone.errors import InvalidValue
from resnet_backbone.weights.read import Weights
from tools.config.classification import ClassifierRunConfig, LabelledSplitConfig
from tools.console import CONSOLE
from tools.data.labelled import LabelledData, load_labelled
from tools.data.loader import TrainingImages
from tools.report.weights import weights_table

from . import runs


def load_train(config: ClassifierRunConfig) -> LabelledData:
    """Read the training split.

    Args:
        config: the settings; `data` is used, and `train.seed` to shuffle labels.

    Returns:
        The split.

    Raises:
        InvalidValue: there is no training split in the settings, or as for `load_labelled`.
        MissingFile: as for `load_labelled`.
    """
    if config.data.train is None:
        raise InvalidValue("there is nothing to train on: set data.train.images")
    data = _load_split(config.data.train)
    if config.data.shuffle_labels:
        data = data.with_shuffled_labels(config.train.seed)
    return data.kept_in_memory() if config.data.keep_decoded else data


def load_val(config: ClassifierRunConfig) -> LabelledData:
    """Read the validation split; arguments, result and errors as for `load_train`."""
    if config.data.val is None:
        raise InvalidValue("there is nothing to score on: set data.val.images")
    data = _load_split(config.data.val)
    return data.kept_in_memory() if config.data.keep_decoded else data


def _load_split(split: LabelledSplitConfig) -> LabelledData:
    return load_labelled(split.images, split.part, split.class_index).evenly_spaced(split.max_images)


def check_same_classes(data: LabelledData, val: LabelledData | None) -> None:
    """Require the same classes in both splits.

    Args:
        data: the training split.
        val: the validation split; None if there is none.

    Raises:
        InvalidValue: they have other classes, or in another order.
    """
    if val is not None and val.class_names != data.class_names:
        raise InvalidValue(
            f"data.train has {_list_classes(data.class_names)}, data.val has {_list_classes(val.class_names)}: give "
            "both the same class folders, or set the same class_index for both"
        )


def _list_classes(names: Sequence[str]) -> str:
    """Number and first names of classes, for a message."""
    word = "class" if len(names) == 1 else "classes"
    return f"{len(names)} {word} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})"


def training_images(config: ClassifierRunConfig, data: LabelledData, preprocess: Preprocess) -> TrainingImages:
    """Make the data set of augmented training images.

    Args:
        config: the settings; `input`, `data.on_bad_image` and `train.seed` are used.
        data: the training split.
        preprocess: the pixel format of the net; images are padded with its mean colour.

    Returns:
        A data set of crops, (3, crop_px, crop_px) uint8, and labels.
    """
    # here and not above: albumentations takes a second to import, which scoring would have to wait for
    from tools.data.crops import RandomCrop

    settings = config.input
    crop = RandomCrop(
        settings.crop_px,
        settings.short_side_px,
        settings.pad_px,
        settings.flip_probability,
        settings.colour_pca_std,
        preprocess,
    )
    return TrainingImages(data, crop, seed=config.train.seed, on_bad_image=config.data.on_bad_image, read=data.read)


def make_classifier(
    config: ClassifierRunConfig, class_names: Sequence[str], console: Console = CONSOLE
) -> ResNetClassifier:
    """Make the classifier that a run starts from: with random weights, or with the weights in the settings.

    Which tensors are loaded and which keep their initial values is printed, and written to weights.txt in `config.out`.

    Args:
        config: the settings; `model`, `weights`, `weights_source` and `allow_missing` are used.
        class_names: the classes of the data.
        console: where to print; a quiet one writes no file either.

    Returns:
        The classifier, on the CPU.

    Raises:
        UserError: as for `resnet_backbone.load_weights`.
    """
    net = ResNetClassifier(config.model.spec, num_classes=len(class_names), norm=config.model.norm)
    net.recompute = config.model.recompute
    loaded: set[str] = set()
    notes: tuple[str, ...] = ()
    if config.weights is not None:
        file = open_weights(config.weights, net=config.model.net)
        runs.note_missing_certificate(file, console)
        report = load_weights(net, file, allow_missing=config.allow_missing, source=config.weights_source)
        loaded, notes = set(report.loaded), report.notes
    table = weights_table(net.state_dict(), loaded, config.weights, notes=notes)
    runs.print_and_save(table, config.out / "weights.txt", console)
    return net


def load_classifier(weights: Weights, config: ClassifierRunConfig, class_names: Sequence[str]) -> ResNetClassifier:
    """Build a trained classifier from its weights.

    A file of this project (a run, its checkpoint, a converted file) describes its net. For any other file the settings
    describe it.

    Args:
        weights: a file, the folder of a run, or a published name ("imagenet1k_v1").
        config: the settings; `model` and `weights_source` are used for files of other projects.
        class_names: the classes of the data.

    Returns:
        The classifier, on the CPU.

    Raises:
        InvalidValue: the file holds no classifier, or one of other classes than the data.
        UserError: as for `resnet_backbone.load_weights`.
    """
    file = open_weights(weights, net=config.model.net)
    if file.meta is None:
        net = ResNetClassifier(config.model.spec, num_classes=len(class_names))
        load_weights(net, file, source=config.weights_source)
        return net
    if "fc.weight" not in file.state:
        raise InvalidValue(
            f"{file} holds a {file.meta['kind']} without a linear layer for classes: give a classifier, such as a run "
            "of tools/train_cls.py"
        )
    names = file.meta.get("class_names")
    if names is not None and tuple(names) != tuple(class_names):
        raise InvalidValue(
            f"{file} has {_list_classes(names)}, the data has {_list_classes(class_names)}: score it on images of its "
            "own classes; a class_index brings the classes of the data into their order"
        )
    runs.note_missing_certificate(file)
    described = from_metadata(file.meta, num_classes=len(class_names))
    assert isinstance(described, ResNetClassifier)
    load_weights(described, file)
    return described
