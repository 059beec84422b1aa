"""What the two training commands share: their options, the run's folder, and the way from a model to its loop."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from rich.console import Console, RenderableType
from torch import nn

from resnet_backbone.errors import AlreadyExists, InvalidValue, MissingFile
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig
from tools.config.settings import load, to_yaml
from tools.console import CONSOLE
from tools.data.loader import BatchPlan, TrainingImages, make_loader
from tools.engine.log import RunLog
from tools.engine.optim import make_optimiser, make_schedule
from tools.engine.tasks import Task
from tools.engine.train import Trainer, make_accelerator

TrainingConfig = RunConfig | ClassifierRunConfig
Run = TypeVar("Run", RunConfig, ClassifierRunConfig)


def main(description: str, kind: type[Run], train: Callable[[Run, Accelerator, bool], object]) -> int:
    """A training command; train: configuration, accelerator, whether to resume."""
    parser = cli.parser(description, config=kind)
    parser.add_argument("config", type=Path, help="YAML of what differs from the defaults below")
    parser.add_argument("--resume", action="store_true", help="continue the run in `out` from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="remove an earlier run in `out` first")
    args = parser.parse_args()
    config = load(kind, args.config, args.set)
    accelerator = make_accelerator(config)
    if accelerator.is_main_process:
        prepare_folder(config, resume=args.resume, overwrite=args.overwrite)
    accelerator.wait_for_everyone()
    train(config, accelerator, args.resume)
    accelerator.end_training()
    return 0


def prepare_folder(config: TrainingConfig, *, resume: bool, overwrite: bool) -> None:
    """Raises FileExistsError where a run would be lost, ValueError where a resume is none."""
    saved = config.out / "config.yaml"
    if resume:
        if not (config.out / "checkpoints" / "last.pt").is_file():
            raise MissingFile(f"{config.out} has no checkpoint to resume from: start it without --resume")
        if load(type(config), saved).model != config.model:
            raise InvalidValue(
                f"model differs from the run in {config.out} ({saved}): resume with the same, or train elsewhere"
            )
    elif config.out.exists() and any(config.out.iterdir()):
        if not overwrite:
            raise AlreadyExists(f"{config.out} already holds a run: --resume continues it, --overwrite replaces it")
        if not saved.is_file():
            raise AlreadyExists(f"{config.out} is not empty and no run of ours: name another folder in `out`")
        shutil.rmtree(config.out)
    config.out.mkdir(parents=True, exist_ok=True)
    saved.write_text(to_yaml(config), encoding="utf-8")


def fit(
    model: nn.Module,
    task: Task,
    images: TrainingImages,
    config: TrainingConfig,
    accelerator: Accelerator,
    *,
    resume: bool,
    evaluate: Callable[[int], Mapping[str, float | None]] | None,
    goal: Callable[[Mapping[str, float | None]], float],
) -> None:
    """The loop, from the first step or the last checkpoint to the schedule's end."""
    say = speaker(accelerator)
    if accelerator.device.type == "cuda":
        # on a CPU channels_last images are enough: oneDNN lays weights out itself, fused optimisers want them plain
        model.to(memory_format=torch.channels_last)
    accumulate, seed = config.train.accumulate, config.train.seed
    per_step = config.train.batch_size // accumulate
    grouped = isinstance(config, RunConfig) and config.train.group_by_aspect
    per_epoch = BatchPlan(images.data, batch_size=per_step, seed=seed, span=(0, 0), group_by_aspect=grouped).per_epoch
    schedule = make_schedule(config, -(-per_epoch // accumulate))
    optimiser = make_optimiser(model, config.optimiser, schedule.peak_lr)
    trainer = Trainer(accelerator, model, optimiser, schedule, config, task, per_epoch, evaluate, goal)
    if resume:
        trainer.resume()
        say.print(f"resumed {trainer.checkpoint} at step {trainer.step} of {schedule.total}")
    plan = BatchPlan(
        images.data,
        batch_size=per_step,
        seed=seed,
        span=(trainer.step * accumulate, schedule.total * accumulate),
        group_by_aspect=grouped,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    say.print(
        f"training on {accelerator.device}, {accelerator.num_processes} process(es), "
        f"precision {accelerator.mixed_precision.replace('no', 'fp32')}, {schedule.total} steps of "
        f"{config.train.batch_size} images, peak lr {schedule.peak_lr:g}"
    )
    loader = make_loader(images, plan, workers=config.data.workers)
    if accelerator.is_main_process:
        with RunLog(config.out, schedule.total, trainer.step, CONSOLE) as log:
            trainer.run(loader, log)
    else:
        trainer.run(loader, None)


def speaker(accelerator: Accelerator) -> Console:
    """Where the main process speaks, and the others are silent."""
    return CONSOLE if accelerator.is_main_process else Console(quiet=True)


def say_and_keep(table: RenderableType, path: Path, say: Console) -> None:
    """On the screen and, by the process that speaks, in a file of the run's folder."""
    say.print(table)
    if not say.quiet:
        with open(path, "w", encoding="utf-8") as file:
            Console(file=file, width=160).print(table)
