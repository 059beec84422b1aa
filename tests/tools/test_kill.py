"""A run survives whatever ends it: kill -9 at any moment, Ctrl-C, a full stop in the middle of writing a checkpoint."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heads.files import load_detector, save_atomically

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24


def start(tiny_yaml: Path, *arguments: str) -> subprocess.Popen[str]:
    """python tools/train_det.py on the tiny data, one checkpoint a step."""
    sets = f"schedule={{iters: {STEPS}, warmup_iters: 2}}", "data.val=null", "model.mask=null", "train.batch_size=2"
    command = [sys.executable, "tools/train_det.py", str(tiny_yaml), *arguments]
    return subprocess.Popen(
        [*command, *(part for one in sets for part in ("--set", one))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["step"]) if checkpoint.is_file() else 0


def wait_for(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Until metrics.jsonl holds this step and a checkpoint exists."""
    metrics, checkpoint = folder / "metrics.jsonl", folder / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 300
    while not (checkpoint.is_file() and metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(process: subprocess.Popen[str], number: int) -> str:
    process.send_signal(number)
    return process.communicate(timeout=300)[0]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_finishes(tiny_yaml: Path, tmp_path: Path) -> None:
    folder, moments = tmp_path / "run", random.Random(1)
    checkpoint = folder / "checkpoints" / "last.pt"
    reached = 0
    for arguments in ((), ("--resume",)):
        process = start(tiny_yaml, *arguments)
        try:
            wait_for(process, folder, reached + 2)
            time.sleep(moments.uniform(0, 0.5))
            end(process, signal.SIGKILL)
        finally:
            process.kill()
        assert process.returncode == -signal.SIGKILL
        detector, _ = load_detector(checkpoint)
        assert all(bool(t.isfinite().all()) for t in detector.state_dict().values())
        assert step_of(checkpoint) > reached
        reached = step_of(checkpoint)

    process = start(tiny_yaml, "--resume")
    try:
        wait_for(process, folder, reached + 2)  # the step after `reached` may stand in the log of the killed run
        said = end(process, signal.SIGINT)
    finally:
        process.kill()
    assert process.returncode == 130, said
    reached = step_of(checkpoint)
    flat = "".join(said.split())  # the message wraps at the console's width
    assert f"stoppedatstep{reached}of{STEPS};saved{checkpoint}" in flat
    assert "Traceback" not in said

    process = start(tiny_yaml, "--resume")
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert f"atstep{reached}of{STEPS}" in "".join(said.split())
    assert step_of(checkpoint) == STEPS
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["last.pt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_checkpoint_is_whole_whenever_its_writer_dies(tmp_path: Path) -> None:
    path, moments = tmp_path / "last.pt", random.Random(2)
    # the child adds with NumPy: a forked process that enters torch's OpenMP pool waits for threads it does not have
    arrays = {f"layer{i}": np.full((64, 1024), float(i), np.float32) for i in range(8)}
    reached = 0
    for _ in range(12):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for step in range(reached + 1, 10**9):
                    model = {k: torch.from_numpy(v + np.float32(step)) for k, v in arrays.items()}
                    save_atomically({"model": model, "step": step}, path)
                    if step == reached + 1:
                        os.write(tell, b".")
            finally:
                os._exit(1)
        try:
            assert select.select([told], [], [], 300)[0], "the writer wrote nothing"
            time.sleep(moments.uniform(0, 0.1))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(told)
            os.close(tell)
        content: Any = torch.load(path, weights_only=True)
        assert content["step"] > reached
        reached = content["step"]
        for i in range(8):
            assert bool((content["model"][f"layer{i}"] == i + reached).all())
