"""Scoring a detector on a data set in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from heads.detector import RCNN
from heads.images import UnreadableImage
from heads.predictor import Prepared
from heads.structures import Detections
from tools.annotations.table import Id
from tools.config.detection import RunConfig
from tools.console import CONSOLE
from tools.data.coco import CocoData
from tools.data.loader import Batches, Draw
from tools.data.scoring import ImagesToScore
from tools.devices import pick_precision
from tools.evaluation.classes import match_categories
from tools.evaluation.interface import Backend
from tools.evaluation.results import coco_results, write_results
from tools.evaluation.scores import Scores, score_coco
from tools.failures import during
from tools.files import write_text

from .detection_setup import fast_predictor, image_reader
from .evaluated import Evaluation, record_scores

SCORE_FILES = ("results.json", "scores.json")
MAX_PENDING = 4  # batches whose detections wait for being converted


@dataclass(frozen=True)
class Predicted:
    """Detections to score.

    Attributes:
        results: detections in COCO's format.
        unreadable: ids of the images that could not be read. They are not scored.
    """

    results: list[dict[str, Any]]
    unreadable: list[Id]

    @classmethod
    def joined(cls, parts: Sequence[Predicted]) -> Predicted:
        """Join the detections of all processes.

        Args:
            parts: one per process.

        Returns:
            All of them.
        """
        return cls([result for p in parts for result in p.results], [i for p in parts for i in p.unreadable])


def predict_results(
    detector: RCNN, data: CocoData, config: RunConfig, *, rank: int = 0, world: int = 1, quiet: bool = False
) -> Predicted:
    """Detect objects in the images of a split, or in the share of one process.

    Args:
        detector: the detector, on its device; it is put into inference mode. Its classes are matched with the
            categories of the data by name.
        data: the split.
        config: the settings; `train.precision`, `eval.batch_size` and `data.on_bad_image` are used.
        rank: index of this process.
        world: number of processes; each takes every world-th image.
        quiet: show no progress.

    Returns:
        The detections. With `data.on_bad_image` "skip", images that cannot be read are listed.

    Raises:
        UnreadableImage: an image cannot be read and `data.on_bad_image` is "stop".
        InvalidValue: no class of the detector has the name of a category.
    """
    match = match_categories(detector.class_names, list(zip(data.category_ids, data.class_names)))
    device, batch_size = next(detector.parameters()).device.type, config.eval.batch_size
    console = Console(quiet=True) if quiet else CONSOLE
    predictor = fast_predictor(detector, pick_precision(config.train.precision, device), config.eval.compile, console)
    predicted = Predicted([], [])
    mine = range(rank, len(data.records), world)
    plan = [[Draw(index, 0) for index in mine[i : i + batch_size]] for i in range(0, len(mine), batch_size)]
    images = ImagesToScore(data, image_reader(config), predictor.preparation(), on_bad_image=config.data.on_bad_image)
    batches = Batches(images, plan, config.data.workers, pin=device != "cpu")

    def convert(image_ids: Sequence[Id], found: Sequence[Detections]) -> None:
        for image_id, detections in zip(image_ids, found):
            predicted.results.extend(coco_results(image_id, detections, match.category_ids))

    # masks are pasted and encoded in a thread, while the detector works on the next batch
    with ThreadPoolExecutor(max_workers=1) as thread:
        conversions: list[Future[None]] = []
        rows = zip(batches, plan)  # in this order the loader processes end with the last batch
        for batch, draws in track(rows, "score", len(plan), console=CONSOLE, disable=quiet or not CONSOLE.is_terminal):
            for message in batch.skipped:
                CONSOLE.print(f"skipped: {message}", markup=False)
            ids = (data.table.image_ids[draw.index] for draw in draws)
            predicted.unreadable.extend(image_id for image_id in ids if image_id not in batch.image_ids)
            if not batch.images:
                continue
            with during(f"detecting objects in {_listed(data, draws)}"):
                found = predictor.detect([Prepared(*pair) for pair in zip(batch.images, batch.targets)])
            conversions.append(thread.submit(convert, batch.image_ids, found))
            if len(conversions) > MAX_PENDING:
                conversions.pop(0).result()
        for conversion in conversions:
            conversion.result()
    return predicted


def _listed(data: CocoData, draws: Sequence[Draw]) -> str:
    """Files and sizes, for a message."""
    table = data.table
    sizes = table.sizes[[draw.index for draw in draws]].tolist()
    return ", ".join(f"{table.paths[d.index]} ({width}x{height})" for d, (height, width) in zip(draws, sizes))


def score(
    detector: RCNN, predicted: Predicted, data: CocoData, config: RunConfig, backend: Backend | None = None
) -> Scores:
    """Score results, on the objects that training uses, and on crowds as COCO-eval does.

    Args:
        detector: the detector; masks are scored if it has a mask head.
        predicted: what `predict_results` returned, of all processes.
        data: the split.
        config: the settings; `eval.max_detections` is used.
        backend: the library that scores; None for pycocotools.

    Returns:
        The scores of boxes, and of masks.

    Raises:
        UnreadableImage: no image could be read.
    """
    kinds = ("bbox", "segm") if "mask" in detector.instance_heads else ("bbox",)
    unreadable = set(predicted.unreadable)
    image_ids = [image_id for image_id in data.table.image_ids if image_id not in unreadable]
    if not image_ids:
        raise UnreadableImage(f"none of the {len(unreadable)} images of {data.table.source} can be read: replace them")
    if unreadable:
        total = len(data.table.image_ids)
        CONSOLE.print(f"not scored: {len(unreadable)} of {total} images, which cannot be read", markup=False)
    return score_coco(
        data.table,
        predicted.results,
        kinds=kinds,
        image_ids=image_ids,
        max_detections=config.eval.max_detections,
        backend=backend,
    )


def write_scores(
    folder: Path, results: Sequence[dict[str, Any]], scores: Scores, evaluation: Evaluation | None = None
) -> None:
    """Write results.json, in COCO's format, and scores.json.

    Args:
        folder: where to; it is made.
        results: what was scored.
        scores: the scores.
        evaluation: what was evaluated; it is noted in evaluated.json.
    """
    write_results(folder / "results.json", results)
    write_text(folder / "scores.json", json.dumps(scores.to_json(), indent=1) + "\n")
    if evaluation is not None:
        record_scores(folder, SCORE_FILES, evaluation)
