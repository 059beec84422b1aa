"""Checks of data sets and weight files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from heads import predictor
from heads.files import load_detector
from heads.images import UnreadableImage
from heads.masks import BitMasks, PolygonMasks, decode_segmentation
from heads.structures import Detections, ImageSize
from resnet_backbone.build import verify
from resnet_backbone.errors import InvalidValue, MissingFile
from resnet_backbone.weights.certificate import TOLERANCE, CertificateMismatch
from resnet_backbone.weights.read import WeightFile
from tools.annotations.findings import BadAnnotations
from tools.config.detection import RunConfig, load_config
from tools.console import CONSOLE
from tools.data.coco import CocoData, ImageRecord
from tools.evaluation import results as result_writer
from tools.evaluation.scores import score_coco

from . import data_checks
from .data_checks import Check
from .detection_data import load_data
from .detection_setup import image_reader
from .plan import plan_for_folder

__all__ = ["Check", "check_certificate", "check_data"]

BOX_TOLERANCE_PX = 0.05  # two resizes of float32 boxes change them by less than 0.001
MIN_AP = 0.999


def check_data(config: RunConfig) -> list[Check]:
    """Check the training and validation data of a run before it is trained.

    The ground truth is scored as if it were predictions: it passes through the loader's resize to network scale, the
    predictor's resize to image scale, the RLE encoder, the mapping of categories, the result writer and COCO-eval. A
    score below 1 means an error in the data or in this pipeline. Masks are scored if the model has masks.

    Args:
        config: the settings; `data`, `model`, `eval` and `input` are used.

    Returns:
        The checks of every split, in the order in which errors should be fixed.

    Raises:
        InvalidValue: the settings name no data.
    """
    splits: dict[str, CocoData] = {}
    hashes: dict[str, list[str]] = {}
    checks: list[Check] = []
    wanted = ["train"] if config.data.folder is not None or config.data.train is not None else []
    wanted += ["val"] if config.data.val is not None or config.data.folder is not None or _makes_val(config) else []
    if not wanted:
        raise InvalidValue("there is nothing to check: set data.folder, or data.train and data.val")
    for split in wanted:
        try:
            data = load_data(config, train=split == "train", val=split == "val")
        except (BadAnnotations, MissingFile) as error:
            cause = "see the list; nothing else of this split was checked"
            checks.append(Check("annotations", False, str(error), cause, split))
            continue
        found = data.train if split == "train" else data.val
        if found is None:
            continue
        splits[split] = found
        checks += [*data_checks.check_findings(found, split), *_check_split(found, config, split)]
        hashes[split] = data_checks.file_hashes(found)
        checks += data_checks.check_statistics(found, hashes[split], config, split)
    return [*checks, *data_checks.check_pair(splits, hashes)]


def data_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the settings whose data are to be checked.

    Args:
        path: a YAML file, or the folder of a data set.
        overrides: settings such as "data.on_bad_image=skip".

    Returns:
        The settings; for a folder those of Mask R-CNN R50-FPN, or Faster R-CNN if objects lack outlines.

    Raises:
        ConfigError: as for `load_config`.
        BadAnnotations: the format of the folder is not recognised.
    """
    if not path.is_dir():
        return load_config(path, overrides)
    return plan_for_folder(path, overrides=overrides).config


def _makes_val(config: RunConfig) -> bool:
    return config.data.train is not None and config.data.val_fraction is not None


def _check_split(data: CocoData, config: RunConfig, split: str) -> list[Check]:
    """Take all objects of a split through the pipeline, and score them."""
    masks = config.model.mask is not None
    unreadable: list[str] = []
    read: list[ImageRecord] = []
    results: list[dict[str, Any]] = []
    outlines_px = 0.0
    read_image = image_reader(config)
    records = track(data.records, f"check {split}", console=CONSOLE, disable=not CONSOLE.is_terminal)
    for record in records:
        try:
            image = read_image(record)
        except UnreadableImage as error:
            unreadable.append(str(error))
            continue
        detections, moved_px = _round_trip(image, record, config, masks)
        outlines_px = max(outlines_px, moved_px)
        results += result_writer.coco_results(record.image_id, detections, data.category_ids)
        read.append(record)
    results = _write_and_read(results)
    skips = config.data.on_bad_image == "skip"
    measured = "; ".join([f"{len(read)} of {len(data.records)} can be used", *unreadable[:1]])
    cause = "an EXIF orientation is ignored, or a file is damaged"
    checks = [
        Check("images", bool(read) and (skips or not unreadable), measured, cause, split, look=bool(unreadable)),
        *_compare(data, read, results, split),
    ]
    if masks:
        within = outlines_px <= BOX_TOLERANCE_PX
        checks.append(Check("outlines", within, f"off by {outlines_px:.4f} px", "vertices are shifted", split))
    if results:
        checks += _score(data, read, results, config, split)
    return checks


def _score(
    data: CocoData, read: Sequence[ImageRecord], results: list[dict[str, Any]], config: RunConfig, split: str
) -> list[Check]:
    """Score the objects as predictions; name those that are not found."""
    kinds = ("bbox", "segm") if config.model.mask is not None else ("bbox",)
    limit = config.eval.max_detections
    scores = score_coco(
        data.table, results, kinds=kinds, image_ids=[record.image_id for record in read], max_detections=limit
    )
    names = [(record, object_id) for record in read for object_id in record.object_ids]
    checks = []
    for kind in kinds:
        ap = scores.kinds[kind].figures["AP"] or 0.0
        cause = data_checks.too_many(read, limit) or "one of the checks above"
        if ap < MIN_AP and len(names) == len(results):
            lost = [names[i] for i in data_checks.unlike_themselves(data, read, results, kind)]
            shown = ", ".join(f"annotation {object_id} (image {record.image_id})" for record, object_id in lost[:5])
            cause = f"{len(lost)} objects do not match themselves: {shown}" if lost else cause
        label = scores.label("AP")
        checks.append(Check(f"{kind} AP", ap >= MIN_AP, f"{label} {ap:.4f}", cause, split))
    return checks


def _round_trip(image: np.ndarray, record: ImageRecord, config: RunConfig, masks: bool) -> tuple[Detections, float]:
    """The ground truth of an image as detections, resized to network scale and back.

    Masks are drawn at the scale of the image: at another scale, a small mask changes by the resize alone. How far the
    outlines are moved by both resizes is measured instead.

    Returns:
        The detections; the largest distance of a vertex from where it was, pixels.
    """
    # not at the top: albumentations takes half a second to import, and `--help` does not need it
    from tools.data.augment import Augment

    augment = Augment((config.input.test_short_side_px,), config.input.long_side_px, 0.0, masks=masks)
    pixels, target = augment(image, record, seed=0)
    network = ImageSize(height=pixels.shape[1], width=pixels.shape[2])
    scores = torch.ones(len(target))
    size = record.size
    detections = predictor.to_image(Detections(target.boxes, scores, target.labels), network, size)
    if not masks or len(detections) != len(record.boxes):
        return detections, 0.0
    exact = Detections(torch.from_numpy(record.boxes).float(), scores, target.labels, _masks(record))
    drawn = predictor.to_image(exact, size, size).masks
    return replace(detections, masks=drawn), data_checks.moved_px(target, record, network)


def _masks(record: ImageRecord) -> PolygonMasks | BitMasks:
    """The outlines of an image; bitmaps if any of them is an RLE."""
    if all(isinstance(segmentation, tuple) for segmentation in record.segmentations):
        return PolygonMasks(record.segmentations)
    # not at the top: albumentations takes half a second to import, and `--help` does not need it
    from tools.data.augment import coco_form

    height, width = record.size.height, record.size.width
    planes = [decode_segmentation(coco_form(s), height, width) for s in record.segmentations]
    return BitMasks(torch.from_numpy(np.stack(planes)))


def _write_and_read(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        result_writer.write_results(path, results)
        return list(json.loads(path.read_text(encoding="utf-8")))


def _compare(data: CocoData, read: Sequence[ImageRecord], results: Sequence[dict[str, Any]], split: str) -> list[Check]:
    """Compare results with annotations one by one; both are in the order of the records."""
    annotations = [
        (box, data.class_names[label], data.category_ids[label])
        for record in read
        for box, label in zip(record.boxes, record.labels)
    ]
    complete = len(annotations) == len(results) > 0
    counts = f"{len(results)} of {len(annotations)}"
    checks = [Check("objects", complete, counts, "images cannot be used, or boxes became empty", split)]
    if not complete:
        return checks
    wrong = [name for (_, name, category), r in zip(annotations, results) if r["category_id"] != category]
    expected = np.array([box for box, _, _ in annotations]).reshape(-1, 4)
    actual = np.array([r["bbox"] for r in results]).reshape(-1, 4)
    sides = np.abs(actual[:, 2:] - (expected[:, 2:] - expected[:, :2])).max(initial=0)
    corners = np.abs(actual[:, :2] - expected[:, :2]).max(initial=0)
    tolerance = BOX_TOLERANCE_PX
    differing = f"{len(wrong)} differ" + (f" ({', '.join(wrong[:3])} ...)" if wrong else "")
    swapped = "x and y are swapped, or shifted"
    return [
        *checks,
        Check("categories", not wrong, differing, "category ids are shifted or mixed up", split),
        Check("box corners", bool(corners <= tolerance), f"off by {corners:.4f} px", swapped, split),
        Check("box sides", bool(sides <= tolerance), f"off by {sides:.4f} px", "width and height are swapped", split),
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
