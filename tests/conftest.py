"""What every test may ask for: the shared data beside the repository, real weights, and a fixed seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each take every core wait for one another: the processes that tests start inherit the share.
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(share)
    torch.set_num_threads(share)


@pytest.fixture(scope="session")
def shared() -> Path:
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"../shared is not here: {path} holds the data and weights that this test reads")
    return path


@pytest.fixture(scope="session")
def coco_mini(shared: Path) -> Path:
    return shared / "data" / "coco-mini"


@pytest.fixture(scope="session")
def imagenet_weights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with resnet18-imagenet.pth and resnet50-imagenet.pth."""
    out = tmp_path_factory.mktemp("imagenet_weights")
    subprocess.run([sys.executable, str(shared / "weights" / "unpack.py"), str(out)], check=True, capture_output=True)
    return out


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hashes() -> Callable[[Mapping[str, Tensor]], dict[str, str]]:
    """State dict -> SHA-256 of every tensor's bytes: what stayed bit for bit, and what did not."""

    def digest(tensor: Tensor) -> str:
        return hashlib.sha256(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()

    return lambda state: {key: digest(value) for key, value in state.items()}
