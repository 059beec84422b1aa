"""A run that is stopped by kill -9, Ctrl-C, or in the middle of writing a checkpoint can be resumed."""

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

from heads.files import load_detector
from resnet_backbone.weights.read import read_weights, save_atomically

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24


def start(tiny_yaml: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start tools/train_det.py on the tiny data, with a checkpoint after every step."""
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
    """Wait until metrics.jsonl has this step and there is a checkpoint."""
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
def test_a_run_that_is_killed_several_times_finishes(tiny_yaml: Path, tmp_path: Path) -> None:
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
        assert step_of(checkpoint) > reached and not (folder / "model.safetensors").exists()
        reached = step_of(checkpoint)

    process = start(tiny_yaml, "--resume")
    try:
        wait_for(process, folder, reached + 2)  # the killed run may have logged the step after `reached`
        output = end(process, signal.SIGINT)
    finally:
        process.kill()
    assert process.returncode == 130, output
    reached = step_of(checkpoint)
    flat = "".join(output.split())  # the message is wrapped at the width of the console
    assert f"stoppedatstep{reached}of{STEPS};saved{checkpoint}" in flat
    assert "Traceback" not in output

    process = start(tiny_yaml, "--resume")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert f"atstep{reached}of{STEPS}" in "".join(output.split())
    assert step_of(checkpoint) == STEPS
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["last.pt"]
    result, trained = read_weights(folder / "model.safetensors"), torch.load(checkpoint, weights_only=True)["model"]
    assert result.certified and all(torch.equal(result.state[key], value) for key, value in trained.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_checkpoint_is_a_whole_file_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    path, moments = tmp_path / "last.pt", random.Random(2)
    # the child adds with NumPy: torch's OpenMP pool deadlocks in a forked process, which has no threads for it
    arrays = {f"layer{i}": np.full((64, 1024), float(i), np.float32) for i in range(8)}
    reached = 0
    for _ in range(12):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for step in range(reached + 1, 10**9):
                    model = {k: torch.from_numpy(v + np.float32(step)) for k, v in arrays.items()}
                    save_atomically({"model": model, "step": step}, path)
                    if step == reached + 1:
                        os.write(writer, b".")
            finally:
                os._exit(1)
        try:
            assert select.select([reader], [], [], 300)[0], "the child wrote nothing"
            time.sleep(moments.uniform(0, 0.1))
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)
            os.close(writer)
        content: Any = torch.load(path, weights_only=True)
        assert content["step"] > reached
        reached = content["step"]
        for i in range(8):
            assert bool((content["model"][f"layer{i}"] == i + reached).all())
