"""What the scores in a folder are of: they are not replaced by those of another evaluation by mistake.

`evaluated.json` beside the scores holds, for each file, its hash and what was evaluated: weights, data and settings.
Scoring the same again replaces the files; anything else needs `--overwrite`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from heads.detector import RCNN
from heads.recipes import DetectorRecipe
from resnet_backbone import ResNetClassifier
from resnet_backbone.errors import AlreadyExists
from resnet_backbone.plain import to_plain
from resnet_backbone.weights.certificate import tensor_hashes
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig
from tools.data.coco import CocoData
from tools.data.labelled import LabelledData
from tools.devices import pick_precision
from tools.files import write_text

RECORD = "evaluated.json"


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated. The device is no part of it.

    Attributes:
        weights: hash of the tensors and of what else the weights describe.
        data: hash of the annotations, and of the names, places and sizes of the images.
        settings: the settings that the scores depend on.
    """

    weights: str
    data: str
    settings: dict[str, Any]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from another evaluation.

        Args:
            other: an evaluation as it was written.

        Returns:
            Such as ["other weights", "eval.max_detections=300 (before: 100)"].
        """
        theirs = other.get("settings")
        theirs = theirs if isinstance(theirs, dict) else {}
        different = [f"other {name}" for name in ("weights", "data") if other.get(name) != getattr(self, name)]
        for name in dict.fromkeys([*self.settings, *theirs]):
            ours, before = self.settings.get(name), theirs.get(name)
            if ours != before:
                different.append(f"{name}={ours} (before: {before})")
        return different


def evaluation_of_detector(detector: RCNN, recipe: DetectorRecipe, data: CocoData, config: RunConfig) -> Evaluation:
    """Describe the evaluation of a detector.

    Args:
        detector: the detector, on its device.
        recipe: its recipe.
        data: the split.
        config: the settings; `eval`, `train.precision` and `data.on_bad_image` are used.

    Returns:
        The description.
    """
    table = data.table
    arrays = [table.first_row, *(part[table.rows] for part in (table.boxes, table.labels, table.areas, table.crowd))]
    arrays += [getattr(table.outlines, part.name) for part in fields(table.outlines)]
    names = [table.image_ids, table.file_names, table.category_ids, table.class_names, _images(table.paths)]
    described = [detector.class_names, to_plain(recipe), to_plain(detector.preprocess)]
    settings = {
        "eval.max_detections": config.eval.max_detections,
        "eval.batch_size": config.eval.batch_size,
        "data.on_bad_image": config.data.on_bad_image,
        "train.precision": pick_precision(config.train.precision, next(detector.parameters()).device.type),
    }
    if config.eval.compile:  # records of earlier versions do not name it
        settings["eval.compile"] = True
    return Evaluation(_digest(tensor_hashes(detector.state_dict()), described), _digest(names, *arrays), settings)


def evaluation_of_classifier(net: ResNetClassifier, data: LabelledData, config: ClassifierRunConfig) -> Evaluation:
    """Describe the evaluation of a classifier.

    Args:
        net: the classifier, on its device.
        data: the split, `data.val` of the settings.
        config: the settings; `data.val`, `input`, `eval`, `train.precision` and `data.on_bad_image` are used.

    Returns:
        The description.
    """
    assert config.data.val is not None
    root = config.data.val.images
    rows = [(record.image_id, record.name, record.label) for record in data.records]
    files = [root] if root.is_file() else [root / config.data.val.part / record.name for record in data.records]
    rule: dict[str, Any] = {"input.test_short_side_px": config.input.test_short_side_px}
    if config.eval.crops == "multi-scale":
        rule = {"eval.scales_px": list(config.eval.scales_px)}
    settings = {
        "eval.crops": config.eval.crops,
        "input.crop_px": config.input.crop_px,
        **rule,
        "data.on_bad_image": config.data.on_bad_image,
        "train.precision": pick_precision(config.train.precision, next(net.parameters()).device.type),
    }
    weights = _digest(tensor_hashes(net.state_dict()), [to_plain(net.spec), to_plain(net.preprocess)])
    return Evaluation(weights, _digest([data.class_names, rows, str(root.absolute()), _images(files)]), settings)


def check_scores(folder: Path, names: Iterable[str], evaluation: Evaluation, *, overwrite: bool) -> None:
    """Check that scores may be written: there are none yet, or those of the same evaluation.

    Args:
        folder: where to.
        names: the files to write.
        evaluation: what will be evaluated.
        overwrite: allow everything.

    Raises:
        AlreadyExists: there are scores of another evaluation, or it is not known of which.
    """
    if folder.exists() and not folder.is_dir():
        raise AlreadyExists(f"{folder} is a file: give --out a folder")
    existing = [name for name in names if os.path.lexists(folder / name)]
    if overwrite or not existing:
        return
    fix = "give --out another folder, or --overwrite to replace them"
    record = _read_record(folder)
    for name in existing:
        entry = record.get(name)
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("of"), dict)
            or entry.get("sha256") != _hash_of(folder / name)
        ):
            raise AlreadyExists(
                f"{folder / name} exists, and {RECORD} beside it does not say which evaluation it is of: {fix}"
            )
        if different := evaluation.differences(entry["of"]):
            raise AlreadyExists(f"{folder / name} is of another evaluation ({', '.join(different)}): {fix}")


def record_scores(folder: Path, names: Iterable[str], evaluation: Evaluation) -> None:
    """Note what scores are of, after they were written.

    Args:
        folder: where they are.
        names: the files that were written.
        evaluation: what was evaluated.
    """
    record = _read_record(folder)
    for name in names:
        record[name] = {"sha256": _hash_of(folder / name), "of": asdict(evaluation)}
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _read_record(folder: Path) -> dict[str, Any]:
    """What the folder's record says; nothing if it has none, or a damaged one."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _hash_of(path: Path) -> str | None:
    """SHA-256 of a file; None for anything else."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _digest(values: Any, *more: Any) -> str:
    """SHA-256 of plain values and arrays."""
    digest = hashlib.sha256()
    for value in (values, *more):
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype} {value.shape} ".encode())
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        else:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _images(paths: Sequence[Path]) -> list[tuple[str, int]]:
    """Absolute paths and sizes in bytes of image files; -1 for those that are missing or in an archive."""
    return [(os.path.abspath(path), _size(path)) for path in paths]


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
