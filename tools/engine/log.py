"""The log of a run: metrics.jsonl, TensorBoard, and a progress display."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from tools.files import write_text


class RunLog:
    """The log of the main process of a run; a context manager.

    Args:
        folder: the folder of the run.
        total: steps of the run.
        start: the step that the run starts from. Lines of metrics.jsonl beyond it are removed.
        console: where to print. On a terminal progress is a bar, elsewhere lines of text.
    """

    def __init__(self, folder: Path, total: int, start: int, console: Console) -> None:
        self.console, self.total = console, total
        self.path = folder / "metrics.jsonl"
        _cut(self.path, start)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        self.progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self.task = self.progress.add_task("train", total=total, completed=start, figures="")
        self.live = Live(self.progress, console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> RunLog:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
        # on a full disk closing fails too: an error that is already on its way says more
        with suppress(OSError) if error is not None else nullcontext():
            try:
                self.file.close()
            finally:
                self.board.close()

    def train(self, step: int, epoch: float, values: dict[str, float], losses: dict[str, float]) -> None:
        """Log training.

        Args:
            step: steps taken so far.
            epoch: the same in passes over the images.
            values: lr, loss, grad_norm, data_s, step_s, images_per_s, memory_mib and the figures of the task.
            losses: the losses by name.
        """
        self._write({"kind": "train", "step": step, "epoch": round(epoch, 4), **values} | _prefixed("losses", losses))
        figures = (
            f"loss {values['loss']:.3f}  lr {values['lr']:.2g}  data {values['data_s']:.2f} s  "
            f"step {values['step_s']:.2f} s  {values['images_per_s']:.1f} images/s  {values['memory_mib']:.0f} MiB"
        )
        self.progress.update(self.task, completed=step, figures=figures)
        if not self.live:  # a file, or the log of a CI job
            left = values["step_s"] * (self.total - step)
            self.console.print(f"step {step}/{self.total}  epoch {epoch:.2f}  ETA {left / 60:.1f} min  {figures}")

    def val(self, step: int, values: dict[str, float | None]) -> None:
        """Log scores of the validation split.

        Args:
            step: steps taken so far.
            values: figures by name, such as "bbox/AP50", as fractions.
        """
        self._write({"kind": "val", "step": step, **values})

    def print(self, text: str) -> None:
        """Print a message above the progress display."""
        self.console.print(text, markup=False)

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for key, value in line.items():
            if isinstance(value, (int, float)) and key not in ("step", "kind"):
                self.board.add_scalar(f"{line['kind']}/{key}", value, line["step"])


def memory_mib(device: torch.device) -> float:
    """Memory in use, in MiB: the peak of this process's tensors on CUDA, its resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{key}": value for key, value in values.items()}


def _cut(path: Path, start: int) -> None:
    """Keep whole lines up to the step that a resumed run starts from."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # the unfinished last line of a run that was killed
    write_text(path, "".join(kept))
