"""Checks of data sets and weight files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heads import predictor
from heads.files import load_detector
from heads.images import UnreadableImage
from heads.structures import Detections, ImageSize
from resnet_backbone.build import verify
from resnet_backbone.errors import InvalidValue
from resnet_backbone.weights.certificate import TOLERANCE, CertificateMismatch
from resnet_backbone.weights.read import WeightFile
from tools.config.detection import RunConfig
from tools.data import loader
from tools.data.augment import Augment
from tools.data.coco import CocoData, ImageRecord
from tools.evaluation import results as result_writer
from tools.evaluation.scores import score_coco

from .detection_setup import load_split

BOX_TOLERANCE_PX = 0.05  # two resizes of float32 boxes change them by less than 0.001
MIN_AP = 0.999


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        passed: whether it is as expected.
        measured: what was measured.
        cause: the likely cause if it did not pass.
    """

    name: str
    passed: bool
    measured: str
    cause: str


def check_data(config: RunConfig) -> list[Check]:
    """Score the ground truth of the validation split as if it were predictions.

    The ground truth passes through the loader's resize to network scale, the predictor's resize to image scale, the
    RLE encoder, the mapping of categories, the result writer and COCO-eval. A score below 1 means an error in the data
    or in this pipeline.

    Args:
        config: the settings; `data.val` and `input` are used.

    Returns:
        The checks, in the order in which errors should be fixed.

    Raises:
        InvalidValue: there is no validation split in the settings.
        MissingFile: as for `load_split`.
        BadAnnotations: as for `load_split`.
    """
    if config.data.val is None:
        raise InvalidValue("there is nothing to check: set data.val.images and data.val.annotations")
    annotations = config.data.val.annotations
    data = load_split(config.data.val, masks=True)
    unreadable: list[str] = []
    results: list[dict[str, Any]] = []
    for record in data.records:
        try:
            detections = _round_trip(record, config)
        except UnreadableImage as error:
            unreadable.append(str(error))
        else:
            results += result_writer.coco_results(record.image_id, detections, data.category_ids)
    results = _write_and_read(results)
    measured = "; ".join([f"{len(unreadable)} of {len(data.records)} cannot be used", *unreadable[:1]])
    checks = [
        Check("images", not unreadable, measured, "an EXIF orientation is ignored, or a file is missing or damaged"),
        *_compare(data, results),
    ]
    if results:
        image_ids = [record.image_id for record in data.records]
        scores = score_coco(annotations, results, kinds=("bbox", "segm"), image_ids=image_ids)
        for kind in ("bbox", "segm"):
            ap = scores.kinds[kind].figures["AP"] or 0.0
            checks.append(Check(f"{kind} AP", ap >= MIN_AP, f"{ap:.4f}", "one of the checks above, or damaged masks"))
    return checks


def _round_trip(record: ImageRecord, config: RunConfig) -> Detections:
    """The ground truth of an image as detections, resized to network scale and back."""
    image = loader.read_checked(record)
    augment = Augment((config.input.test_short_side_px,), config.input.long_side_px, 0.0, masks=True)
    pixels, target = augment(image, record, seed=0)
    network = ImageSize(height=pixels.shape[1], width=pixels.shape[2])
    detections = Detections(target.boxes, torch.ones(len(target)), target.labels, target.masks)
    return predictor.to_image(detections, network, ImageSize(height=image.shape[0], width=image.shape[1]))


def _write_and_read(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        result_writer.write_results(path, results)
        return list(json.loads(path.read_text(encoding="utf-8")))


def _compare(data: CocoData, results: Sequence[dict[str, Any]]) -> list[Check]:
    """Compare results with annotations one by one; both are in the order of the records."""
    annotations = [
        (box, data.class_names[label], data.category_ids[label])
        for record in data.records
        for box, label in zip(record.boxes, record.labels)
    ]
    complete = len(annotations) == len(results)
    counts = f"{len(results)} of {len(annotations)}"
    checks = [Check("objects", complete, counts, "images cannot be used, or boxes became empty")]
    if not complete:
        return checks
    wrong = [name for (_, name, category), r in zip(annotations, results) if r["category_id"] != category]
    expected = np.array([box for box, _, _ in annotations]).reshape(-1, 4)
    actual = np.array([r["bbox"] for r in results]).reshape(-1, 4)
    sides = np.abs(actual[:, 2:] - (expected[:, 2:] - expected[:, :2])).max(initial=0)
    corners = np.abs(actual[:, :2] - expected[:, :2]).max(initial=0)
    tolerance = BOX_TOLERANCE_PX
    differing = f"{len(wrong)} differ" + (f" ({', '.join(wrong[:3])} ...)" if wrong else "")
    return [
        *checks,
        Check("categories", not wrong, differing, "category ids are shifted or mixed up"),
        Check("box corners", bool(corners <= tolerance), f"off by {corners:.4f} px", "x and y are swapped, or shifted"),
        Check("box sides", bool(sides <= tolerance), f"off by {sides:.4f} px", "width and height are swapped"),
    ]


def check_certificate(file: WeightFile) -> list[Check]:
    """Check the hashes of a file's tensors and the outputs of its stages against its certificate.

    Args:
        file: what `open_weights` returned.

    Returns:
        The checks that were made: none for a file without a certificate.

    Raises:
        WeightMismatch: the tensors do not fit the recipe of a detector.
        InvalidValue: as for `load_detector`.
    """
    if file.meta is None or not file.certified:
        return []
    cause = "the file was edited or damaged, or this version computes something else: make it again"
    try:
        if file.meta["kind"] == "detector":
            load_detector(file)
        else:
            verify(file)
    except CertificateMismatch as mismatch:
        return [Check("certificate", False, str(mismatch), cause)]
    tensors, stages = file.meta["tensors"], file.meta["fingerprint"]
    return [
        Check("tensors", True, f"{len(tensors)} have the certified SHA-256", cause),
        Check("outputs", True, f"{', '.join(stages)} are as certified, within {TOLERANCE:g}", cause),
    ]
