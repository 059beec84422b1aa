"""The data of a detection run: both splits, read and checked before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from resnet_backbone.errors import InvalidValue
from tools.annotations.findings import Findings, read_all
from tools.annotations.formats import Folder, Split, read_folder
from tools.annotations.reader import ReadOptions
from tools.annotations.splits import split_table
from tools.annotations.table import Id
from tools.config.detection import RunConfig, SplitConfig
from tools.data.coco import CocoData, load_coco, restrict
from tools.evaluation.classes import match_categories

VAL_FRACTION = 0.2  # of data.folder, if it has no validation split


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        train: the training split; None if it was not asked for.
        val: the validation split; None if there is none.
        notes: what the data are and how they were split, in sentences.
    """

    train: CocoData | None
    val: CocoData | None
    notes: tuple[str, ...] = ()

    def say(self, console: Console) -> None:
        """Print the notes and everything that was found while reading.

        Args:
            console: where to print.
        """
        for line in self.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    def lines(self) -> list[str]:
        """The notes and findings as lines of text."""
        splits = {"train": self.train, "val": self.val}
        found = [f"{name}: {line}" for name, s in splits.items() if s is not None for line in s.table.findings.lines()]
        return [*self.notes, *found]


def load_train(config: RunConfig) -> CocoData:
    """Read the training split; arguments and errors as for `load_data`."""
    data = load_data(config, val=False).train
    assert data is not None
    return data


def load_val(config: RunConfig, *, masks: bool | None = None) -> CocoData:
    """Read the validation split, with its images without objects: a detection there is a false positive.

    Args:
        config: the settings; `data` is used.
        masks: whether objects need an outline; None: if the model of the settings has masks.

    Returns:
        The split.

    Raises:
        InvalidValue: there is no validation split in the settings.
        MissingFile: as for `load_coco`.
        BadAnnotations: as for `load_coco`.
    """
    data = load_data(config, train=False, masks=masks).val
    if data is None:
        raise InvalidValue(
            "there is nothing to score on: set data.val.images and data.val.annotations, or data.val_fraction"
        )
    return data


def load_data(config: RunConfig, *, train: bool = True, val: bool = True, masks: bool | None = None) -> Data:
    """Read the splits of a run, and check that they fit together.

    Args:
        config: the settings; `data` is used, and whether the model has masks.
        train: whether to read the training split.
        val: whether to read the validation split.
        masks: whether objects need an outline; None: if the model has masks.

    Returns:
        The splits.

    Raises:
        InvalidValue: there is no training split in the settings, or no class is in both splits.
        MissingFile: as for `load_coco`.
        BadAnnotations: as for `load_coco`.
    """
    settings = config.data
    masks = config.model.mask is not None if masks is None else masks
    sources, notes = _sources(config)
    if sources.train is None and train:
        raise InvalidValue(
            "there is nothing to train on: set data.train.images and data.train.annotations, or data.folder"
        )
    if sources.train is None and sources.val is None:
        raise InvalidValue("there is nothing to score on: set data.val.images and data.val.annotations, or data.folder")
    fraction = settings.val_fraction or (VAL_FRACTION if settings.folder is not None else None)
    makes_split = sources.val is None and fraction is not None
    readers: dict[str, Callable[[], CocoData]] = {}
    if sources.train is not None and (train or makes_split):
        min_box_px = 0.0 if makes_split else settings.min_box_px
        readers["train"] = partial(_load, sources.train, config, masks, min_box_px=min_box_px)
    if sources.val is not None and val:
        readers["val"] = partial(_load, sources.val, config, masks)
    loaded = read_all(readers)
    if makes_split and fraction is not None:
        loaded["train"], loaded["val"], said = _split(loaded["train"], fraction, settings.split_seed)
        notes.append(said)
    elif train and val and sources.val is None:
        notes.append("no validation split: nothing is scored (data.val, or data.val_fraction=0.2, gives one)")
    found = Data(_prepared(loaded["train"], config) if train else None, loaded.get("val") if val else None)
    if found.train is not None and found.val is not None:
        notes += compare_classes(found.train, found.val)
    return replace(found, notes=tuple(notes))


@dataclass(frozen=True)
class _Source:
    images: Path
    annotations: Path | Mapping[str, Any]
    findings: Findings
    objects: tuple[int, int] | None = None
    max_images: int | None = None


@dataclass(frozen=True)
class _Sources:
    train: _Source | None
    val: _Source | None


def _sources(config: RunConfig) -> tuple[_Sources, list[str]]:
    """Where the splits are, and what to say about it."""
    settings = config.data
    if settings.folder is None:
        return _Sources(_of_setting(settings.train), _of_setting(settings.val)), []
    folder = read_folder(settings.folder)
    train_name, val_name = _split_names(folder)
    notes = [f"{settings.folder} is {folder.format}", *folder.notes]
    if val_name == "test":
        notes.append("there is no validation split: the test split is scored in its place")
    unused = [name for name in folder.splits if name not in (train_name, val_name)]
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    splits = folder.splits
    return (
        _Sources(_of_folder(splits[train_name]), None if val_name is None else _of_folder(splits[val_name])),
        notes,
    )


def _split_names(folder: Folder) -> tuple[str, str | None]:
    """The names of the splits to train on and to score."""
    names = list(folder.splits)
    train = next((name for name in ("train", "all") if name in names), names[0])
    return train, next((name for name in ("val", "test") if name in names and name != train), None)


def _of_setting(split: SplitConfig | None) -> _Source | None:
    if split is None:
        return None
    findings = Findings(split.annotations)
    return _Source(split.images, split.annotations, findings, split.objects, split.max_images)


def _of_folder(split: Split) -> _Source:
    annotations = split.annotations if split.content is None else split.content
    return _Source(split.images, annotations, split.findings)


def _load(source: _Source, config: RunConfig, masks: bool, *, min_box_px: float = 0.0) -> CocoData:
    settings = config.data
    options = ReadOptions(
        masks=masks,
        on_bad_annotation=settings.on_bad_annotation,
        on_bad_image=settings.on_bad_image,
        box_format=settings.box_format,
        crowds=settings.crowds,
        classes=settings.classes,
        outside_images=settings.outside_images,
        max_image_px=settings.max_image_px,
    )
    data = load_coco(source.images, source.annotations, options, min_box_px=min_box_px, findings=source.findings)
    return restrict(data, objects=source.objects, max_images=source.max_images)


def _prepared(data: CocoData, config: RunConfig) -> CocoData:
    """The training split without small boxes, and without empty images if the settings say so."""
    return replace(data, min_box_px=config.data.min_box_px).for_training(keep_empty=config.data.empty_images == "keep")


def _split(data: CocoData, fraction: float, seed: int) -> tuple[CocoData, CocoData, str]:
    """Split a data set in two; near-duplicate images stay together."""
    *tables, how = split_table(data.table, val_fraction=fraction, seed=seed)
    train, val = (replace(data, table=table) for table in tables)
    return train, val, f"no validation split: one was made (data.val_fraction={fraction:g}): {how}"


def compare_classes(train: CocoData, val: CocoData) -> list[str]:
    """Match the classes of the splits by name.

    Args:
        train: the training split.
        val: the validation split.

    Returns:
        Sentences about classes that only one of them has.

    Raises:
        InvalidValue: no class is in both.
    """
    pairs: list[tuple[Id, str]] = list(zip(val.category_ids, val.class_names))
    match = match_categories(train.class_names, pairs, model="the training split")
    notes = []
    if match.unmatched_model:
        notes.append(f"classes of the training split that the validation split lacks: {_listed(match.unmatched_model)}")
    if match.unmatched_dataset:
        notes.append(
            f"classes of the validation split that the training split lacks, so that they score zero: "
            f"{_listed(match.unmatched_dataset)}"
        )
    return notes


def _listed(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"
