"""Row of peak memory: training step, inference and masks, each in a process of its own.

This module is also what those processes run: `python -m tools.jobs.benchmarks.memory FILE WORK WHO`.
"""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .contenders import Comparison, Contender
from .inference import our_work, their_work
from .masks import given_masks, our_rles, their_rles
from .models import our_detector, pair, random_targets, torchvision_detector
from .setting import Setting
from .start_up import ROOT
from .training import OBJECTS, our_step, their_step, trainable, training_images

TORCHVISION, OURS, FAST = "torchvision", "detector", "for_inference()"
WORKS = {
    "training": ("training step of two images", (TORCHVISION, OURS)),
    "inference": ("inference of one picture", (TORCHVISION, OURS, FAST)),
    "masks": ("masks of 100 detections to RLE, 4000x3000 px (48x64 with --quick)", (TORCHVISION, OURS)),
}


def memory(setting: Setting) -> Iterator[Comparison]:
    """Peak memory beyond that of the process with its model.

    Args:
        setting: how to run.

    Yields:
        Three comparisons.
    """
    both = pair(setting)
    images, _ = training_images(setting, both.ours)
    given = {
        "state": {name: value.cpu() for name, value in both.theirs.state_dict().items()},
        "picture": torch.from_numpy(setting.pictures[0].copy()),
        "images": images,
        "device": setting.device,
        "quick": setting.quick,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.pt"
        torch.save(given, path)
        for work, (title, names) in WORKS.items():
            if work == "masks" and setting.on_cuda:
                continue
            yield Comparison(
                "memory",
                f"peak memory beyond the model: {title}",
                [Contender(name, partial(_in_a_process, path, work, name), ours=name != TORCHVISION) for name in names],
                reference=TORCHVISION,
                unit="MiB",
                equal=["on CUDA: what torch allocated; on a CPU: the resident set"],
                max_repeats=3,
                warm_up=False,
            )


def _in_a_process(path: Path, work: str, who: str) -> float:
    command = [sys.executable, "-m", "tools.jobs.benchmarks.memory", str(path), work, who]
    return float(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def measure(path: Path, work: str, who: str) -> float:
    """Build the model, do the work twice, and say by how much the memory grew at its peak.

    Args:
        path: what `memory` saved.
        work: a key of `WORKS`.
        who: one of the names.

    Returns:
        MiB.
    """
    given: dict[str, Any] = torch.load(path, weights_only=True)
    run = _prepared(given, work, who)
    given.clear()
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _twice(run)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before_mib = _resident_mib(reset=True)
    _twice(run)
    return max(0.0, _resident_mib(reset=False) - before_mib)


def _twice(run: Callable[[], object]) -> None:
    run()
    run()


def _resident_mib(*, reset: bool) -> float:
    """The peak of the resident set so far, MiB.

    On Linux `ru_maxrss` of a process that a large one started is that of the large one, and it counts what building the
    model took for a moment; the kernel's own record can be set back to the present.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        scale = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    lines = status.read_text(encoding="utf-8").splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) / 2**10


def _prepared(given: dict[str, Any], work: str, who: str) -> Callable[[], object]:
    """The work, with its model built."""
    setting = Setting(device=given["device"], quick=given["quick"])
    sizes, device, state = setting.sizes, setting.device, given["state"]
    if work == "masks":
        height, width = (48, 64) if setting.quick else (4000, 3000)
        inputs = *given_masks(100, height, width), height, width
        return partial(their_rles if who == TORCHVISION else our_rles, *inputs)
    if who == TORCHVISION:
        theirs = trainable(torchvision_detector(sizes, state)).to(device)
        if work == "inference":
            return their_work(theirs, [given["picture"].numpy()], device)
        return their_step(theirs, *_training(given), device)
    ours = our_detector(sizes, state).to(device)
    if work == "inference":
        return our_work(ours.for_inference() if who == FAST else ours, [given["picture"].numpy()])
    return our_step(ours, *_training(given), device)


def _training(given: dict[str, Any]) -> tuple[Any, Any]:
    from heads.structures import ImageSize

    sizes = [ImageSize(height=image.shape[1], width=image.shape[2]) for image in given["images"]]
    return given["images"], random_targets(sizes, OBJECTS)


if __name__ == "__main__":
    print(measure(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
