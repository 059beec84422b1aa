"""The training loop, on accelerate: the same code runs in one process on a CPU and in many processes on GPUs.

A checkpoint is one file, replaced atomically. A step is only taken if loss and gradient are finite, so a checkpoint
always holds finite weights: the optimiser skips the step by a flag on the device. On a GPU, the host reads the flag
while the next step is computed, so that the GPU need not be waited for; it reads it before it writes a checkpoint too.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone.errors import InvalidValue
from resnet_backbone.weights.read import read_file, save_atomically
from tools.config.settings import CommonConfig
from tools.devices import pick_device, pick_precision, use_tf32

from .log import RunLog, memory_mib
from .meter import Meter
from .optim import Plateau, Schedule
from .readout import NonFiniteLoss, Readout
from .tasks import Outcome, Task, TrainBatch

__all__ = ["NonFiniteLoss", "Stopped", "Trainer", "check_sync_bn", "make_accelerator"]


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run, after it had saved a checkpoint."""


def make_accelerator(config: CommonConfig) -> Accelerator:
    """Choose device, precision and gradient accumulation; torchrun's environment sets the processes.

    Args:
        config: the settings of the run.

    Returns:
        The accelerator. `train.tf32` is set for the whole process.

    Raises:
        InvalidValue: a device or precision that this machine does not have.
    """
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    use_tf32(config.train.tf32)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=config.train.accumulate,
    )


def check_sync_bn(model: nn.Module, accelerator: Accelerator) -> None:
    """Check that SyncBatchNorm layers train on CUDA: torch synchronises them nowhere else.

    Args:
        model: the model.
        accelerator: its device.

    Raises:
        InvalidValue: a SyncBatchNorm would train on another device.
    """
    if accelerator.device.type != "cuda" and any(
        isinstance(m, nn.SyncBatchNorm) and m.training for m in model.modules()
    ):
        raise InvalidValue(
            f"model.norm=sync_bn trains on CUDA only, this run is on {accelerator.device.type}: use bn, gn or frozen_bn"
        )


@dataclass
class Trainer:
    """The state of a run and its loop.

    Attributes:
        accelerator: device, precision and processes.
        model: the model, trained in-place.
        optimiser: its optimiser.
        schedule: the learning rate of every step.
        config: the settings of the run.
        task: losses, and the content of files.
        batches_per_epoch: batches, of which `train.accumulate` make a step.
        evaluate: step -> figures of the validation split; None without one.
        goal: the figure that `schedule.kind=plateau` reads, the smaller the better.
        began: called after the first step that this process takes, or before it scores a run that has none left.
        step: steps taken so far.
        plateau: how often the learning rate was lowered.

    Raises:
        InvalidValue: `schedule.kind=plateau` without `evaluate` or `goal`.
    """

    accelerator: Accelerator
    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    config: CommonConfig
    task: Task
    batches_per_epoch: int
    evaluate: Callable[[int], Mapping[str, float | None]] | None = None
    goal: Callable[[Mapping[str, float | None]], float] | None = None
    began: Callable[[], None] | None = None
    step: int = 0
    plateau: Plateau = field(init=False)
    _stop_requested: bool = field(default=False, init=False)
    _stop_at_once: bool = field(default=False, init=False)
    _pending: list[Readout] = field(default_factory=list, init=False)  # steps whose values were not read yet
    _to_score: bool = field(default=False, init=False)  # the scores of `step` are due, and the checkpoint says so

    def __post_init__(self) -> None:
        self.plateau = Plateau(self.config.schedule.plateau_patience)
        if self.config.schedule.kind == "plateau" and (self.evaluate is None or self.goal is None):
            raise InvalidValue("schedule.kind=plateau needs scores: set data.val, or use step or cosine")

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint: everything that resuming needs, without a certificate."""
        return self.config.out / "checkpoints" / "last.pt"

    @property
    def result(self) -> Path:
        """The certified file of the finished run; `resnet_backbone.build.file_of_run` prefers it to the checkpoint."""
        return self.config.out / "model.safetensors"

    def resume(self) -> list[str]:
        """Load weights, optimiser and step from the last checkpoint. Call it before `run`.

        Settings of the optimiser (weight decay, momentum, betas) are those of the configuration, not the checkpoint's.

        Returns:
            Messages about what differs from the run so far.
        """
        content: Any = read_file(self.checkpoint)
        self.model.load_state_dict(content["model"])
        own = [{key: value for key, value in g.items() if key != "params"} for g in self.optimiser.param_groups]
        self.optimiser.load_state_dict(content["optimiser"])
        for group, settings in zip(self.optimiser.param_groups, own):
            group.update(settings)
        self.step = int(content["step"])
        self.plateau.load(content.get("plateau", {}))
        self._to_score = bool(content.get("to_score", False))
        if self.accelerator.scaler is not None and "scaler" in content:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        now, before = self._epoch(), content.get("epoch", self._epoch())
        if now["accumulate"] != before["accumulate"] or now["batches"] == before["batches"]:
            return []
        return [f"the training split has changed: an epoch had {before['batches']} batches, now {now['batches']}"]

    def run(self, batches: Iterable[TrainBatch], log: RunLog | None) -> None:
        """Train from `step` to the end of the schedule, save the certified result, and score it.

        Args:
            batches: the batches that are left, `train.accumulate` for each step.
            log: the log of the main process; None in the others.

        Raises:
            InvalidValue: the model has SyncBatchNorm layers and does not train on CUDA.
            NonFiniteLoss: a loss or the gradient is NaN or infinite.
            Stopped: Ctrl-C or SIGTERM; a checkpoint was saved.
            CannotWrite: a file cannot be written, for example because the disk is full; the last checkpoint is whole.
        """
        check_sync_bn(self.model, self.accelerator)
        # before every forward pass, DistributedDataParallel would send all buffers to all processes
        changing = any(isinstance(m, _BatchNorm) and m.training for m in self.model.modules())
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(broadcast_buffers=changing)
        model, optimiser = self.accelerator.prepare(self.model, self.optimiser)
        model.train()
        previous = {s: signal.signal(s, self._request_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        if self.accelerator.is_main_process and self.step < self.schedule.total:
            # the result of an earlier, shorter run would be preferred to the new checkpoints
            self.result.unlink(missing_ok=True)
        try:
            if not self.checkpoint.exists():
                self.save()  # a run that fails in its first steps can be resumed too
            if self.step >= self.schedule.total:  # resumed after its last step: it may have been killed while scoring
                self._begin()
                self._finish(log, model)
            elif self._to_score:
                self._score(log, model)
            self._train(model, optimiser, batches, log)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _train(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, batches: Iterable[TrainBatch], log: RunLog | None
    ) -> None:
        meter, first = None if log is None else Meter(), self.step
        iterator = iter(batches)
        while self.step < self.schedule.total:
            began = time.perf_counter()
            parts = [next(iterator) for _ in range(self.config.train.accumulate)]
            fetched = time.perf_counter()
            lr = self.schedule.lr(self.step, self.plateau.decays)
            self._take_step(model, optimiser, parts, lr, meter)
            self.step += 1
            if self.step == first + 1:
                self._begin()
            if log is not None and meter is not None:
                meter.add_time(fetched - began, time.perf_counter() - began)
                self._report(log, meter, parts, lr)
            self._between_steps(log, model, meter)

    def _begin(self) -> None:
        if self.began is not None:
            self.began()

    def _take_step(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        parts: list[TrainBatch],
        lr: float,
        meter: Meter | None,
    ) -> None:
        """One optimiser step. Its values become pending; on a CPU they are read at once."""
        accelerator = self.accelerator
        # the random numbers of a step (which anchors and proposals are sampled) depend on seed, step and process only
        torch.manual_seed(hash((self.config.train.seed, self.step, accelerator.process_index)) % 2**63)
        for group in optimiser.param_groups:
            group["lr"] = lr
        outcomes: list[Outcome] = []
        for part in parts:
            with accelerator.accumulate(model):
                outcome = self.task.outcome(model, part, accelerator.device)
                accelerator.backward(torch.stack(list(outcome.losses.values())).sum())
                outcomes.append(Outcome({k: v.detach() for k, v in outcome.losses.items()}, outcome.figures))
                if accelerator.sync_gradients:
                    self._prepare_update(parts, outcomes, meter)
                optimiser.step()
                optimiser.zero_grad()
        if accelerator.device.type == "cpu":
            self._read_pending(meter)

    def _prepare_update(self, parts: list[TrainBatch], outcomes: list[Outcome], meter: Meter | None) -> None:
        """Clip the gradient, make the optimiser skip a step that is not finite, and read the step before."""
        # fp16's scaler skips steps with an infinite gradient itself, until it has found a scale
        scaled = self.accelerator.mixed_precision == "fp16"
        image_ids = [part.image_ids for part in parts]
        readout = Readout(self.step, outcomes, image_ids, self._clip(), checks_norm=not scaled)
        if not scaled:
            optimiser: Any = self.optimiser
            optimiser.found_inf = (~readout.finite).float()  # torch's fused optimisers skip where it is 1
        self._read_pending(meter)
        self._pending.append(readout)

    def _clip(self) -> Tensor:
        """Clip the gradient; returns its norm."""
        limit, parameters = self.config.optimiser.clip_norm, list(self.model.parameters())
        if limit is not None:
            norm: Tensor = self.accelerator.clip_grad_norm_(parameters, limit)
            return norm
        self.accelerator.unscale_gradients()
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _read_pending(self, meter: Meter | None) -> None:
        """Read the values of the steps taken so far. Raises `NonFiniteLoss`."""
        while self._pending:
            values = self._pending.pop(0).read(self.checkpoint)
            if meter is not None:
                meter.add(values)

    def _report(self, log: RunLog, meter: Meter, parts: list[TrainBatch], lr: float) -> None:
        for part in parts:
            for message in part.skipped:
                log.print(f"skipped: {message}")
        if self.step % self.config.train.log_every_iters == 0 or self.step in (1, self.schedule.total):
            self._read_pending(meter)
            values, losses = meter.drain(self.config.train.batch_size)
            values |= {"lr": lr, "memory_mib": memory_mib(self.accelerator.device)}
            epoch = self.step * self.config.train.accumulate / self.batches_per_epoch
            log.train(self.step, epoch, values, losses)

    def _between_steps(self, log: RunLog | None, model: nn.Module, meter: Meter | None) -> None:
        every, last = self.config.eval.every_epochs, self.step == self.schedule.total
        per_epoch = self.batches_per_epoch / self.config.train.accumulate
        due = every is not None and int(self.step / (every * per_epoch)) > int((self.step - 1) / (every * per_epoch))
        self._to_score = due and not last and self.evaluate is not None
        stop = self._everybody_stops()
        # before scoring too: it may take long, and may be stopped
        if stop or last or self._to_score or self.step % self.config.train.checkpoint_every_iters == 0:
            self._read_pending(meter)
            self.save()
        if stop:
            raise Stopped(f"stopped at step {self.step} of {self.schedule.total}; saved {self.checkpoint}")
        if last:
            self._finish(log, model)
        elif self._to_score:
            self._score(log, model)

    def _finish(self, log: RunLog | None, model: nn.Module) -> None:
        """Write the certified result, then score."""
        if self.accelerator.is_main_process:
            self.task.save(self.accelerator.unwrap_model(self.model), self.result)
        self._score(log, model)

    def _score(self, log: RunLog | None, model: nn.Module) -> None:
        if self.evaluate is None:
            return
        values = self._evaluate()
        model.train()
        self._to_score = False
        if self.config.schedule.kind == "plateau" and self.goal is not None and self.step < self.schedule.total:
            self.plateau.see(self.goal(values))
            self.save()  # so that a resumed run does not count this score twice
        if log is not None and values:
            log.val(self.step, dict(values))

    def _evaluate(self) -> Mapping[str, float | None]:
        """Score. Ctrl-C and SIGTERM stop it at once: the checkpoint of this step says that its scores are due."""
        assert self.evaluate is not None
        self._stop_at_once = True
        try:
            if self._stop_requested:  # it came after the last step's check
                raise KeyboardInterrupt
            return self.evaluate(self.step)
        except KeyboardInterrupt as stop:
            raise Stopped(
                f"stopped while step {self.step} of {self.schedule.total} was scored; saved {self.checkpoint}"
            ) from stop
        finally:
            self._stop_at_once = False

    def _everybody_stops(self) -> bool:
        """Whether any process was asked to stop."""
        if self.accelerator.num_processes == 1:
            return self._stop_requested
        if self._stop_requested:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop_requested or self._stop_at_once:  # the second signal, or scoring
            raise KeyboardInterrupt
        self._stop_requested = True

    def _epoch(self) -> dict[str, int]:
        """What an epoch consists of, to tell whether the data has changed when a run is resumed."""
        return {"batches": self.batches_per_epoch, "accumulate": self.config.train.accumulate}

    def save(self) -> None:
        """Write the checkpoint, in the main process. The model is neither copied nor run."""
        if self.accelerator.is_main_process:
            content = self.task.content(self.accelerator.unwrap_model(self.model))
            content |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "plateau": vars(self.plateau)}
            content |= {"epoch": self._epoch(), "to_score": self._to_score}
            if self.accelerator.scaler is not None:  # fp16: a resumed run goes on with the scale that was found
                content["scaler"] = self.accelerator.scaler.state_dict()
            save_atomically(content, self.checkpoint)
