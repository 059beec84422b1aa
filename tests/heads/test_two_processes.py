"""Two processes with one image each take the same step as one process with both images."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("ddp_worker.py")
Boxes = tuple[list[list[float]], list[int]]
THREE: Boxes = ([[8.0, 8, 50, 40], [30, 20, 90, 60], [60, 5, 80, 30]], [0, 2, 1])
ONE: Boxes = ([[20.0, 10, 70, 50]], [1])
NONE: Boxes = ([], [])
CASES = {"3 and 0 objects": [THREE, NONE], "1 and 3 objects": [ONE, THREE], "no objects": [NONE, NONE]}


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    """ddp_worker.py as a module, for its detector and its step."""
    spec = importlib.util.spec_from_file_location("ddp_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_two_processes(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(WORKER)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        logs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_take_the_same_step_as_one(tmp_path: Path, worker: ModuleType) -> None:
    """Images have unequal numbers of objects, so a mean of the processes' means would give another step."""
    detector = worker.make_detector()
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    pixels = torch.randn(2, 3, worker.HEIGHT, worker.WIDTH, dtype=torch.float64)
    torch.save({"state": state, "pixels": pixels, "cases": list(CASES.values())}, tmp_path / "case.pt")
    run_two_processes(tmp_path)
    for (name, case), actual in zip(CASES.items(), torch.load(tmp_path / "after.pt", weights_only=True)):
        detector.load_state_dict(state)
        detector.zero_grad()
        expected = worker.step(detector, detector, pixels, [worker.make_target(*image) for image in case])
        changes = {key: (expected[key] - before).abs().max() for key, before in state.items()}
        assert sum(change > 0 for change in changes.values()) > 40
        for key, change in changes.items():
            assert (actual[key] - expected[key]).abs().max() <= 1e-5 * change, f"{key} with {name}"
