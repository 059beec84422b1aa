"""Training of a tiny detector, for tests of the engine."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from rich.console import Console

from heads.detector import RCNN
from heads.files import load_detector
from tools.config.detection import RunConfig
from tools.data.coco import CocoData
from tools.data.loader import Batch, BatchPlan, make_loader
from tools.engine.log import RunLog
from tools.engine.optim import make_optimiser, make_schedule
from tools.engine.tasks import Detection
from tools.engine.train import Trainer, make_accelerator
from tools.jobs import detection

Tiny = Callable[..., RunConfig]
QUIET = Console(quiet=True)


def make_trainer(config: RunConfig, data: CocoData | None = None, *, resume: bool = False) -> tuple[Trainer, Any]:
    """A trainer and its batches, as jobs.detection.train makes them, without pictures and scores."""
    torch.manual_seed(config.train.seed)
    accelerator = make_accelerator(config)
    data = data or detection.load_train(config)
    detector = detection.make_detector(config, data, QUIET)
    per_step, accumulate = config.train.batch_size // config.train.accumulate, config.train.accumulate
    per_epoch = BatchPlan(data, batch_size=per_step, seed=0, span=(0, 0)).per_epoch
    schedule = make_schedule(config, -(-per_epoch // accumulate))
    optimiser = make_optimiser(detector, config.optimiser, schedule.peak_lr)
    trainer = Trainer(
        accelerator,
        detector,
        optimiser,
        schedule,
        config,
        Detection(config.model, detector.preprocess, len(data.class_names)),
        per_epoch,
    )
    if resume:
        trainer.resume()
    span = trainer.step * accumulate, schedule.total * accumulate
    plan = BatchPlan(data, batch_size=per_step, seed=config.train.seed, span=span)
    return trainer, make_loader(detection.training_images(config, data), plan, workers=0)


def run(config: RunConfig, batches: Callable[[Iterable[Batch]], Iterable[Batch]] = iter, **more: Any) -> RCNN:
    """Train with a log; the detector."""
    config.out.mkdir(parents=True, exist_ok=True)
    trainer, loader = make_trainer(config, **more)
    with RunLog(config.out, trainer.schedule.total, trainer.step, QUIET) as log:
        trainer.run(batches(loader), log)
    assert isinstance(trainer.model, RCNN)
    return trainer.model


def lines(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def max_difference(a: RCNN, b: RCNN, prefix: str = "") -> float:
    """The largest difference of any tensor, relative to the largest value of the tensor."""
    one, two = a.state_dict(), b.state_dict()
    keys = [key for key in one if key.startswith(prefix)]
    assert keys and one.keys() == two.keys()
    return max(
        float((one[k].double() - two[k].double()).abs().max() / one[k].double().abs().max().clamp(min=1e-3))
        for k in keys
    )


def finite_checkpoint(config: RunConfig) -> dict[str, Any]:
    detector, _ = load_detector(config.out / "checkpoints" / "last.pt")
    assert all(bool(t.isfinite().all()) for t in detector.state_dict().values())
    return torch.load(config.out / "checkpoints" / "last.pt", weights_only=True)


def stop_at(number: int) -> Callable[[Iterable[Batch]], Iterator[Batch]]:
    """Batches; this process gets SIGTERM, as from a job scheduler, while this step is taken."""

    def batches(loader: Iterable[Batch]) -> Iterator[Batch]:
        for index, batch in enumerate(loader, start=1):
            if index == number:
                signal.raise_signal(signal.SIGTERM)
            yield batch

    return batches


def start_of(config: RunConfig, data: CocoData) -> RCNN:
    torch.manual_seed(config.train.seed)
    return detection.make_detector(config, data, QUIET)
