"""Two processes with one image each take the step that one process takes with both."""

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
    """The worker's own file, for its detector and its step."""
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
        said = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_processes_take_the_step_of_one(tmp_path: Path, worker: ModuleType) -> None:
    """Images with unequal numbers of objects: a mean of the processes' means would be another step."""
    detector = worker.make()
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    pixels = torch.randn(2, 3, worker.HEIGHT, worker.WIDTH, dtype=torch.float64)
    torch.save({"state": state, "pixels": pixels, "cases": list(CASES.values())}, tmp_path / "case.pt")
    run_two_processes(tmp_path)
    for (name, case), two in zip(CASES.items(), torch.load(tmp_path / "after.pt", weights_only=True)):
        detector.load_state_dict(state)
        detector.zero_grad()
        one = worker.step(detector, detector, pixels, [worker.target(*image) for image in case])
        moved = {key: (one[key] - before).abs().max() for key, before in state.items()}
        assert sum(distance > 0 for distance in moved.values()) > 40
        for key, distance in moved.items():
            assert (two[key] - one[key]).abs().max() <= 1e-5 * distance, f"{key} with {name}"
