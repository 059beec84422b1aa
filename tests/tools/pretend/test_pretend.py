"""On a simulated GPU nothing meets a tensor of the CPU, results are the CPU's, and the host waits rarely.

`device.py` simulates the GPU. It needs a process of its own, so each test starts a program of this folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
# how often the host may wait for the GPU, (a, b) for a + b * n times with n images
STEP_BUDGET = (6, 2)  # of a training step with polygons, which are drawn on the host
READOUT = 1  # of them, to read losses and the norm of the gradient
INFERENCE_BUDGET = (2, 8)


def run(program: str, *arguments: object, launcher: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Run a program of this folder; the lines of JSON that it printed."""
    command = [sys.executable, *launcher, "-m", f"tests.tools.pretend.{program}", *map(str, arguments)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check_budget(waits: dict[str, int], budget: tuple[int, int], images: int) -> None:
    allowed = budget[0] + budget[1] * images
    assert sum(waits.values()) <= allowed, f"more than {allowed} waits for {images} images: {waits}"


@pytest.mark.parametrize("neck", ["fpn", "c4", "dc5"])
def test_losses_and_gradients_are_those_of_the_cpu(neck: str) -> None:
    lines = run("training", neck)
    assert len(lines) == 24  # conventions x kinds of masks x an empty target or none x norms
    for line in lines:
        torch.testing.assert_close(line["pretend"], line["cpu"], rtol=1e-4, atol=1e-6, msg=str(line))


def test_a_training_step_keeps_to_its_budget_of_waits() -> None:
    lines = run("training", "waits")
    assert [(line["masks"], line["images"]) for line in lines] == [
        ("polygons", 1),
        ("polygons", 3),
        ("bitmaps", 1),
        ("bitmaps", 3),
    ]
    for line in lines:
        check_budget(line["waits"], (STEP_BUDGET[0] - READOUT, STEP_BUDGET[1]), line["images"])


def test_predictions_are_those_of_the_cpu_and_keep_to_their_budget_of_waits() -> None:
    lines = run("inference")
    for line in lines[:2]:
        check_budget(line["waits"], INFERENCE_BUDGET, line["images"])
    assert len(lines) == 2 + 6 + 2  # waits, three precisions with and without `fast`, an adapted backbone, a classifier
    for line in lines[2:]:
        ours, reference = line["pretend"], line["cpu"]
        if line.get("predictor", ["fp32"])[0] == "fp32":
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
            continue
        for (_, scores, _), (_, expected, _) in zip(ours, reference, strict=True):
            assert len(expected) > 10 and abs(len(scores) - len(expected)) <= 2
            torch.testing.assert_close(scores[:5], expected[:5], rtol=0, atol=0.05)


def waits_of_run(config: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> list[dict[str, int]]:
    """Train; the waits of every step, of one of the processes."""
    waits: list[dict[str, int]] = run("command", "tools.train_det", config, *arguments, launcher=launcher)[0]["waits"]
    return waits


def test_a_run_is_trained_stopped_and_resumed_within_the_budget_of_waits(tiny_yaml: Path) -> None:
    sets = ("--set", "train.checkpoint_every_iters=2", "--set", "train.log_every_iters=6")
    first = waits_of_run(tiny_yaml, *sets, "--set", "schedule.iters=3", "--set", "train.precision=bf16")
    second = waits_of_run(tiny_yaml, *sets, "--set", "schedule.iters=6", "--set", "train.precision=bf16", "--resume")
    assert len(first) == len(second) == 3
    for waits in first + second:
        check_budget(waits, STEP_BUDGET, 4)
    steps = [json.loads(x)["step"] for x in (tiny_yaml.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 6


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_train_on_it(tiny_yaml: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    waits = waits_of_run(tiny_yaml, "--set", "schedule.iters=2", launcher=launcher)
    assert len(waits) == 2 and (tiny_yaml.parent / "run" / "model.safetensors").is_file()
