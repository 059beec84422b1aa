"""What training jobs share: the folder of a run, its processes, and the training loop around a model.

The engine needs accelerate and tensorboard. It is imported inside the functions that train, so that jobs which score or
predict start without either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from rich.console import Console, RenderableType
from torch import nn

from heads.images import UnreadableImage
from resnet_backbone.weights.read import WeightFile
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig
from tools.console import CONSOLE
from tools.data.guard import read_record
from tools.data.loader import BatchPlan, TrainingImages, make_loader
from tools.failures import explained

from .resuming import check_classes, describe_changes
from .run_folder import CHECKPOINT, claim_folder, free_folder, prepare_folder, real_folder, settle

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tools.engine.tasks import Task

__all__ = [
    "batch_plan",
    "check_resumed_classes",
    "fit",
    "initial_weights",
    "main_console",
    "note_missing_certificate",
    "prepare_folder",
    "print_and_save",
    "read_images",
    "score_together",
    "started",
]

Record = TypeVar("Record")
Config = TypeVar("Config", RunConfig, ClassifierRunConfig)
TrainingConfig = RunConfig | ClassifierRunConfig
Figures = Mapping[str, float | None]
MANY_EPOCHS = 300
NOT_CHECKED = "its tensors and outputs are not checked"


@contextmanager
def started(config: TrainingConfig, *, resume: bool, overwrite: bool) -> Iterator[Accelerator]:
    """Start a run: device and precision, the processes of torchrun, and the folder of the run.

    Args:
        config: the settings of the run.
        resume: continue the run in `config.out`.
        overwrite: replace an earlier run in `config.out`. It is deleted after the first step of this one, and put
            back if this one does not get there.

    Yields:
        The accelerator. It is released on exit, so that one process can train again with other settings.

    Raises:
        InvalidValue: a device or precision that this machine does not have.
        UserError: as for `claim_folder`, and as for `failures.explained` for what fails while the run goes on.
    """
    from accelerate.state import AcceleratorState, GradientState

    from tools.engine.train import make_accelerator

    accelerator = make_accelerator(config)
    try:
        with explained(config.out), _claimed(config, accelerator, resume=resume, overwrite=overwrite):
            yield accelerator
            accelerator.end_training()
    finally:  # accelerate keeps device and precision for the whole process
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@contextmanager
def _claimed(config: TrainingConfig, accelerator: Accelerator, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """The folder of a run, held by the main process; a start that fails leaves it as it was."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield
        return
    claim_folder(config, resume=resume, overwrite=overwrite)
    done = False
    try:
        accelerator.wait_for_everyone()
        if resume:
            for line in describe_changes(config, real_folder(config.out)):
                CONSOLE.print(line, markup=False, soft_wrap=True)
        yield
        done = True
    finally:
        free_folder(config, keep=done)


def initial_weights(config: Config, *, resume: bool) -> Config:
    """The settings that the model of a run is made from.

    Args:
        config: the settings of the run.
        resume: whether the run is resumed.

    Returns:
        The settings themselves, or, for a resumed run, those that load its checkpoint: the weights that the run started
        from are not needed any more, and the pixel format is the one of the run.
    """
    if not resume:
        return config
    checkpoint = config.out / CHECKPOINT
    if isinstance(config, RunConfig):
        update: dict[str, Any] = {"init_from": checkpoint, "backbone_weights": None, "backbone_source": None}
    else:
        update = {"weights": str(checkpoint), "weights_source": None}
    return config.model_copy(update={**update, "allow_missing": ()})


def fit(
    model: nn.Module,
    task: Task,
    images: TrainingImages,
    config: TrainingConfig,
    accelerator: Accelerator,
    *,
    resume: bool,
    evaluate: Callable[[bool], Figures] | None,
    goal: Callable[[Figures], float],
) -> None:
    """Train a model from the first step, or the last checkpoint, to the end of the schedule.

    Args:
        model: the model, on its device. It is trained in-place.
        task: its loss, and the content of its files.
        images: the training images.
        config: the settings of the run.
        accelerator: what `started` yielded.
        resume: continue from the last checkpoint.
        evaluate: whether these are the final scores -> figures of the validation split; None without one.
        goal: the figure that `schedule.kind=plateau` reads, the smaller the better.

    Raises:
        NonFiniteLoss: a loss or gradient is NaN or infinite.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    from tools.engine.log import RunLog
    from tools.engine.optim import make_optimiser, make_schedule
    from tools.engine.train import Trainer

    console = main_console(accelerator)
    if accelerator.device.type == "cuda":
        # on a CPU channels_last images are enough: oneDNN lays out weights itself, and fused optimisers need plain ones
        model.to(memory_format=torch.channels_last)
    settings = config.train
    plan = batch_plan(images, config)
    schedule = make_schedule(config, -(-plan.per_epoch // settings.accumulate))
    optimiser = make_optimiser(model, config.optimiser, schedule.peak_lr)
    at_step = None if evaluate is None else lambda step: evaluate(step >= schedule.total)
    trainer = Trainer(accelerator, model, optimiser, schedule, config, task, plan.per_epoch, at_step, goal)
    if resume:
        for note in trainer.resume():
            console.print(note, markup=False, soft_wrap=True)
        console.print(f"resumed {trainer.checkpoint} at step {trainer.step} of {schedule.total}")
    if accelerator.is_main_process:
        trainer.began = partial(settle, config, trainer.step)
    console.print(
        f"training on {accelerator.device}, {accelerator.num_processes} process(es), "
        f"precision {accelerator.mixed_precision.replace('no', 'fp32')}, {schedule.total} steps of "
        f"{settings.batch_size} images, peak lr {schedule.peak_lr:g}"
    )
    for warning in schedule_warnings(schedule.total, schedule.warmup, config, plan.per_epoch / settings.accumulate):
        console.print(warning, style="yellow", markup=False)
    span = (trainer.step * settings.accumulate, schedule.total * settings.accumulate)
    rank, world = accelerator.process_index, accelerator.num_processes
    plan = batch_plan(images, config, span, rank, world)
    loader = make_loader(images, plan, workers=config.data.workers, pin=accelerator.device.type != "cpu")
    if accelerator.is_main_process:
        with RunLog(config.out, schedule.total, trainer.step, CONSOLE) as log:
            trainer.run(loader, log)
    else:
        trainer.run(loader, None)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the caller gets it without autocast around forward


def schedule_warnings(total: int, warmup: int, config: TrainingConfig, steps_per_epoch: float) -> list[str]:
    """Say what is unusual about the length of a run.

    Args:
        total: steps of the run.
        warmup: steps of its warm-up.
        config: the settings; `schedule` is used.
        steps_per_epoch: steps that one pass over the images takes.

    Returns:
        Sentences, each with a setting to change.
    """
    schedule, epochs = config.schedule, total / steps_per_epoch
    warnings = []
    if epochs > MANY_EPOCHS:
        warnings.append(
            f"{total:,} steps are {epochs:,.0f} epochs of these images: a schedule for a larger data set? "
            "(schedule.epochs sets the length in epochs, schedule.iters in steps)"
        )
    first = schedule.decay_at[0] * total if schedule.kind == "step" and schedule.decay_at else total
    if warmup and warmup >= first:
        what = "the learning rate decays" if first < total else "the run ends"
        warnings.append(
            f"warm-up takes {warmup:,} steps, but {what} at step {first:,.0f}: the full learning rate is never reached "
            "(schedule.warmup_iters)"
        )
    return warnings


def check_resumed_classes(config: TrainingConfig, class_names: Sequence[str], *, resume: bool) -> None:
    """Check that the data of a resumed run has the run's classes in the same order. Call it before anything is written.

    Args:
        config: the settings of the run.
        class_names: the classes of the data, in the order of the labels.
        resume: whether the run is resumed; if not, nothing is checked.

    Raises:
        InvalidValue: the classes or their order differ.
    """
    if resume:
        check_classes(config.out / CHECKPOINT, class_names)


def batch_plan(
    images: TrainingImages, config: TrainingConfig, span: tuple[int, int] = (0, 0), rank: int = 0, world: int = 1
) -> BatchPlan:
    """Choose the training images of every batch.

    Args:
        images: the training images.
        config: the settings of the run.
        span: first batch, and the one after the last.
        rank: index of this process.
        world: number of processes.

    Returns:
        The plan of this process.
    """
    grouped = isinstance(config, RunConfig) and config.train.group_by_aspect
    size, seed = config.train.batch_size // config.train.accumulate, config.train.seed
    return BatchPlan(
        images.data, batch_size=size, seed=seed, span=span, group_by_aspect=grouped, rank=rank, world=world
    )


def score_together(accelerator: Accelerator, results: Sequence[Any], score: Callable[[list[Any]], Figures]) -> Figures:
    """Score the results of all processes.

    Args:
        accelerator: what `started` yielded.
        results: the results of this process.
        score: called in the main process with the results of all processes, in the order of the processes.

    Returns:
        What `score` returned, in every process.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    everything = gather_object(list(results))
    figures: list[Figures] = [{}]
    if accelerator.is_main_process:
        figures = [score(everything)]
    broadcast_object_list(figures)
    return figures[0]


def read_images(
    read: Callable[[Record], np.ndarray], records: Iterable[Record], config: TrainingConfig
) -> Iterator[tuple[Record, np.ndarray]]:
    """Read images of a split to score or show.

    Args:
        read: reads the image of a record, (H, W, 3) uint8 RGB.
        records: the records.
        config: the settings; `data.on_bad_image` is used.

    Yields:
        A record and its image. With `data.on_bad_image` "skip", those that cannot be read are left out, and the reason
        is printed.

    Raises:
        UnreadableImage: an image cannot be read and `data.on_bad_image` is "stop".
        UserError: as for `read_record`; no other error leaves this function.
    """
    for record in records:
        try:
            image = read_record(read, record)
        except UnreadableImage as error:
            if config.data.on_bad_image == "stop":
                raise
            CONSOLE.print(f"skipped: {error}", markup=False)
        else:
            yield record, image


def main_console(accelerator: Accelerator) -> Console:
    """The console of the main process; a quiet one for every other process."""
    return CONSOLE if accelerator.is_main_process else Console(quiet=True)


def note_missing_certificate(file: WeightFile, console: Console = CONSOLE) -> None:
    """Print a line if a file is a checkpoint of this project, which carries no certificate.

    Args:
        file: what `open_weights` returned.
        console: where to print.
    """
    if file.meta is not None and not file.certified:
        console.print(f"{file} is a checkpoint without a certificate: {NOT_CHECKED}", markup=False, soft_wrap=True)


def print_and_save(table: RenderableType, path: Path, console: Console) -> None:
    """Print a table, and write it to a text file unless the console is quiet.

    Args:
        table: what to print.
        path: the text file; its folder is made.
        console: where to print.
    """
    console.print(table)
    if not console.quiet:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            Console(file=file, width=160).print(table)
