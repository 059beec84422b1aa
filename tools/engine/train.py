"""The training loop, on accelerate: one process on a CPU or many on GPUs run the same lines.

A checkpoint is one file, replaced atomically; a step is only taken when loss and gradient are finite, so a saved
checkpoint is always a loadable and finite one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from resnet_backbone.errors import InvalidValue, UserError
from resnet_backbone.weights.read import read_file, save_atomically
from tools.config.settings import CommonConfig
from tools.devices import pick_device, pick_precision

from .log import RunLog, memory_mib
from .optim import Plateau, Schedule
from .tasks import Outcome, Task, TrainBatch


class NonFiniteLoss(UserError, FloatingPointError):
    """Training met a NaN or an infinity; nothing of that step was taken over."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved its checkpoint."""


def make_accelerator(config: CommonConfig) -> Accelerator:
    """Device, precision and accumulation from the settings; several processes from torchrun's environment."""
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=config.train.accumulate,
    )


def refuse_sync_bn(model: nn.Module, accelerator: Accelerator) -> None:
    """Raises ValueError where SyncBN cannot work: torch synchronises batch norms on CUDA only."""
    if accelerator.device.type != "cuda" and any(
        isinstance(m, nn.SyncBatchNorm) and m.training for m in model.modules()
    ):
        raise InvalidValue(
            f"model.norm=sync_bn trains on CUDA only, this run is on {accelerator.device.type}: use bn, gn or frozen_bn"
        )


@dataclass
class Trainer:
    """Everything that one run's loop needs. evaluate: step -> figures of the validation split; goal: of these the one
    that the learning rate waits for with `schedule.kind=plateau`, the smaller the better."""

    accelerator: Accelerator
    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    config: CommonConfig
    task: Task
    batches_per_epoch: int
    evaluate: Callable[[int], Mapping[str, float | None]] | None = None
    goal: Callable[[Mapping[str, float | None]], float] | None = None
    step: int = 0
    plateau: Plateau = field(init=False)
    _asked_to_stop: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.plateau = Plateau(self.config.schedule.plateau_patience)
        if self.config.schedule.kind == "plateau" and (self.evaluate is None or self.goal is None):
            raise InvalidValue("schedule.kind=plateau waits for scores: set data.val, or use step or cosine")

    @property
    def checkpoint(self) -> Path:
        return self.config.out / "checkpoints" / "last.pt"

    def resume(self) -> None:
        """Weights, optimiser and step from the last checkpoint. Call before `prepare`."""
        content: Any = read_file(self.checkpoint)
        self.model.load_state_dict(content["model"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.step = int(content["step"])
        self.plateau.load(content.get("plateau", {}))
        if self.accelerator.scaler is not None and "scaler" in content:
            self.accelerator.scaler.load_state_dict(content["scaler"])

    def run(self, batches: Iterable[TrainBatch], log: RunLog | None) -> None:
        """Train from `step` to the schedule's end. Raises `NonFiniteLoss`, `Stopped`."""
        refuse_sync_bn(self.model, self.accelerator)
        model, optimiser = self.accelerator.prepare(self.model, self.optimiser)
        model.train()
        accumulate = self.config.train.accumulate
        previous = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        meter = _Meter()
        if not self.checkpoint.exists():
            self.save()  # from here on there is always one to come back to
        try:
            if self.step == self.schedule.total:  # resumed: killed after its last step, while it was scored
                self._score(log, model)
            iterator = iter(batches)
            while self.step < self.schedule.total:
                began = time.perf_counter()
                parts = [next(iterator) for _ in range(accumulate)]
                fetched = time.perf_counter()
                lr = self.schedule.lr(self.step, self.plateau.decays)
                values, norm = self._take_step(model, optimiser, parts, lr)
                self.step += 1
                meter.add(values, norm, fetched - began, time.perf_counter() - began)
                self._report(log, meter, parts, lr)
                self._between_steps(log, model)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _take_step(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, parts: list[TrainBatch], lr: float
    ) -> tuple[Outcome, float]:
        """One optimiser step; its losses and figures, averaged over the accumulated parts, and the gradient's norm."""
        accelerator = self.accelerator
        # randomness of a step (which anchors and proposals are sampled) is a function of seed, step and process
        torch.manual_seed(hash((self.config.train.seed, self.step, accelerator.process_index)) % 2**63)
        for group in optimiser.param_groups:
            group["lr"] = lr
        outcomes, norm = [], float("nan")
        for part in parts:
            with accelerator.accumulate(model):
                outcome = self.task.outcome(model, part, accelerator.device)
                self._require_finite(outcome.losses, part)
                accelerator.backward(torch.stack(list(outcome.losses.values())).sum())
                if accelerator.sync_gradients:
                    norm = self._clip(part)
                optimiser.step()
                optimiser.zero_grad()
            outcomes.append(outcome)
        return mean_outcome(outcomes), norm

    def _require_finite(self, losses: Mapping[str, Tensor], part: TrainBatch) -> None:
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        if not bool(values.isfinite().all()):
            named = ", ".join(f"{name}={value:g}" for name, value in zip(losses, values.tolist()))
            raise NonFiniteLoss(
                f"step {self.step}: a loss is not finite ({named}), images {part.image_ids}. The last "
                f"checkpoint is untouched ({self.checkpoint}): lower optimiser.lr, set optimiser.clip_norm, "
                "or look at these images"
            )

    def _clip(self, part: TrainBatch) -> float:
        limit = self.config.optimiser.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit if limit is not None else float("inf"))
        value = float(norm)
        # fp16's scaler meets infinities on its way to a good scale, and skips those steps itself
        if self.accelerator.mixed_precision != "fp16" and not value < float("inf"):
            raise NonFiniteLoss(
                f"step {self.step}: the gradient's norm is {value}, with finite losses, images {part.image_ids}. "
                f"The last checkpoint is untouched ({self.checkpoint}): lower optimiser.lr or look at these images"
            )
        return value

    def _report(self, log: RunLog | None, meter: _Meter, parts: list[TrainBatch], lr: float) -> None:
        if log is None:
            return
        for part in parts:
            for message in part.skipped:
                log.say(f"skipped: {message}")
        if self.step % self.config.train.log_every_iters == 0 or self.step in (1, self.schedule.total):
            values, losses = meter.drain(self.config.train.batch_size)
            values |= {"lr": lr, "memory_mib": memory_mib(self.accelerator.device)}
            epoch = self.step * self.config.train.accumulate / self.batches_per_epoch
            log.train(self.step, epoch, values, losses)

    def _between_steps(self, log: RunLog | None, model: nn.Module) -> None:
        every, last = self.config.eval.every_epochs, self.step == self.schedule.total
        per_epoch = self.batches_per_epoch / self.config.train.accumulate
        stop = self._everybody_stops()
        if stop or last or self.step % self.config.train.checkpoint_every_iters == 0:
            self.save()
        if stop:
            raise Stopped(f"stopped at step {self.step} of {self.schedule.total}; saved {self.checkpoint}")
        scored = every is not None and int(self.step / (every * per_epoch)) > int((self.step - 1) / (every * per_epoch))
        if last or scored:
            self._score(log, model)

    def _score(self, log: RunLog | None, model: nn.Module) -> None:
        if self.evaluate is None:
            return
        values = self.evaluate(self.step)
        model.train()
        if self.config.schedule.kind == "plateau" and self.goal is not None and self.step < self.schedule.total:
            self.plateau.see(self.goal(values))
            self.save()  # a resumed run does not score again what this one has seen
        if log is not None and values:
            log.val(self.step, dict(values))

    def _everybody_stops(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._asked_to_stop
        if self._asked_to_stop:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._asked_to_stop:  # the second time means now
            raise KeyboardInterrupt
        self._asked_to_stop = True

    def save(self) -> None:
        """The whole state, by the main process."""
        if self.accelerator.is_main_process:
            content = self.task.content(self.accelerator.unwrap_model(self.model))
            content |= {"optimiser": self.optimiser.state_dict(), "step": self.step, "plateau": vars(self.plateau)}
            if self.accelerator.scaler is not None:  # fp16: a resumed run goes on with the scale that it had found
                content["scaler"] = self.accelerator.scaler.state_dict()
            save_atomically(content, self.checkpoint)


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Of the parts of a step; nothing of their graphs is kept."""

    def mean(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([part[name].detach() for part in parts]).mean() for name in parts[0]}

    return Outcome(mean([o.losses for o in outcomes]), mean([o.figures for o in outcomes]))


class _Meter:
    """Means since the last line of the log; tensors stay so until then, so that a GPU is not waited for."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._times: list[tuple[float, float, float]] = []

    def add(self, outcome: Outcome, norm: float, data_s: float, step_s: float) -> None:
        self._outcomes.append(outcome)
        self._times.append((norm, data_s, step_s))

    def drain(self, images: int) -> tuple[dict[str, float], dict[str, float]]:
        mean = mean_outcome(self._outcomes)
        losses = {name: float(loss) for name, loss in mean.losses.items()}
        norm, data_s, step_s = (sum(column) / len(self._times) for column in zip(*self._times))
        values = {"grad_norm": norm, "data_s": data_s, "step_s": step_s, "loss": sum(losses.values())}
        values |= {"images_per_s": images / step_s} | {name: float(value) for name, value in mean.figures.items()}
        self.__init__()  # type: ignore[misc]
        return values, losses
