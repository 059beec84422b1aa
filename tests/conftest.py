"""Fixtures for all tests: shared data and weights, a fixed seed, a small detector, batches and targets."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from heads import DETECTORS, BitMasks, DetectorRecipe, ImageBatch, ImageSize, MaskHeadSpec, PolygonMasks, Targets
from heads.masks import polygons_from

ROOT = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as in the background of a shell: commands that tests start would inherit it, and could not be stopped by Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker gets an equal share of the cores; processes that tests start inherit it through OMP_NUM_THREADS.
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ["OMP_NUM_THREADS"] = str(share)
    torch.set_num_threads(share)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `long`, unless they are asked for by that marker."""
    if "long" in (config.getoption("markexpr") or ""):
        return
    for item in items:
        if "long" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes many minutes: `make test-long` runs it"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with data and weights; without it the test is skipped."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} does not exist: it holds the data and weights that this test reads")
    return path


@pytest.fixture(scope="session")
def coco_mini(shared: Path) -> Path:
    """The folder of coco-mini, a small part of COCO."""
    return shared / "data" / "coco-mini"


@pytest.fixture(scope="session")
def imagenet_weights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with resnet18-imagenet.pth and resnet50-imagenet.pth."""
    out = tmp_path_factory.mktemp("imagenet_weights")
    subprocess.run([sys.executable, str(shared / "weights" / "unpack.py"), str(out)], check=True, capture_output=True)
    return out


@pytest.fixture(autouse=True)
def seed() -> None:
    """Seed torch before every test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hashes() -> Callable[[Mapping[str, Tensor]], dict[str, str]]:
    """A function from a state dict to the SHA-256 of every tensor's bytes, to compare states bit for bit."""

    def digest(tensor: Tensor) -> str:
        return hashlib.sha256(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()

    return lambda state: {key: digest(value) for key, value in state.items()}


@pytest.fixture(scope="session")
def small_recipe() -> DetectorRecipe:
    """A Mask R-CNN with all its parts and few channels, small enough to train in a test."""
    recipe = DETECTORS["mask_rcnn_r18_fpn"]
    return replace(
        recipe,
        norm="bn",
        frozen_stages=0,
        pyramid_channels=32,
        rpn=replace(recipe.rpn, samples_per_image=32, keep_after_nms_train=50, keep_after_nms_test=50),
        box=replace(recipe.box, hidden=64, samples_per_image=32),
        mask=MaskHeadSpec(channels=32),
    )


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., ImageBatch]:
    """A function that draws a batch of random images of equal size."""

    def make(count: int = 2, height: int = 64, width: int = 96) -> ImageBatch:
        return ImageBatch(torch.randn(count, 3, height, width), (ImageSize(height, width),) * count)

    return make


@pytest.fixture(scope="session")
def make_targets() -> Callable[..., Targets]:
    """A function from boxes to targets.

    Masks are diamonds in the boxes, or empty bitmaps of the size `empty_bits` (height, width).
    """

    def make(
        boxes: Sequence[Sequence[float]], labels: Sequence[int] | None = None, empty_bits: tuple[int, int] | None = None
    ) -> Targets:
        polygons = tuple(
            polygons_from([[(x1 + x2) / 2, y1, x2, (y1 + y2) / 2, (x1 + x2) / 2, y2, x1, (y1 + y2) / 2]])
            for x1, y1, x2, y2 in boxes
        )
        bits = None if empty_bits is None else torch.zeros(len(boxes), *empty_bits, dtype=torch.bool)
        return Targets(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor([0] * len(boxes) if labels is None else labels, dtype=torch.int64),
            PolygonMasks(polygons) if bits is None else BitMasks(bits),
        )

    return make
