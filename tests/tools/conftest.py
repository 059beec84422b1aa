"""A data set and a configuration small enough to run every command in a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState

from tools import cli
from tools.config.detection import RunConfig, load_config
from tools.data.coco import CocoData, ImageRecord
from tools.data.shapes import generate_shapes


class Said(NamedTuple):
    """Exit code and output of a command; runs of white space in `out` are single spaces."""

    code: Any
    out: str
    err: str


@dataclass(frozen=True)
class GivenRecords:
    """A split of records that a test has made."""

    records: tuple[ImageRecord, ...]
    category_ids: tuple[int | str, ...]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, records: Iterable[ImageRecord], data: CocoData) -> Any:
        """The records with the classes of a split; typed as Any, to stand in for `CocoData`."""
        return cls(tuple(records), data.category_ids, data.class_names)

    def wide(self) -> list[bool]:
        return [record.size.width > record.size.height for record in self.records]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """call(module, *arguments) runs a command in this process."""

    def make(module: ModuleType, *arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", [module.__name__, *(str(a) for a in arguments)])
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            cli.run(module.main)
        return Said(stop.value.code, " ".join(out.getvalue().split()), err.getvalue())

    return make


@pytest.fixture(scope="session")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training and 6 validation images of the shapes data set, short side 128 px."""
    root = tmp_path_factory.mktemp("tiny_shapes") / "shapes"
    generate_shapes(root, train_images=16, val_images=6, side_px=128, seed=3, workers=1)
    return root


@pytest.fixture
def tiny_yaml(tiny_shapes: Path, tmp_path: Path) -> Path:
    """A configuration of six steps with a Mask R-CNN R18-FPN of few channels, written to tmp_path/run."""

    def split(name: str) -> dict[str, str]:
        return {
            "images": str(tiny_shapes / "images" / name),
            "annotations": str(tiny_shapes / "annotations" / f"instances_{name}.json"),
        }

    values: dict[str, Any] = {
        "out": str(tmp_path / "run"),
        "model": {
            "recipe": "mask_rcnn_r18_fpn",
            "norm": "bn",
            "frozen_stages": 0,
            "pyramid_channels": 16,
            "rpn": {
                "anchor_sizes_px": [[12], [24], [36], [48], [64]],
                "samples_per_image": 32,
                "keep_before_nms_train": 50,
                "keep_after_nms_train": 30,
                "keep_before_nms_test": 50,
                "keep_after_nms_test": 30,
            },
            "box": {"hidden": 32, "samples_per_image": 16, "max_detections": 20},
            "mask": {"channels": 16, "convs": 1},
        },
        "backbone_weights": None,
        "data": {"train": split("train"), "val": split("val"), "empty_images": "keep", "workers": 0},
        "input": {"short_side_px": [64, 96], "long_side_px": 128, "test_short_side_px": 96},
        "optimiser": {"lr": 0.005},
        "schedule": {"iters": 6, "warmup_iters": 2},
        "train": {"batch_size": 4, "device": "cpu", "checkpoint_every_iters": 1, "log_every_iters": 1},
        "eval": {"batch_size": 2},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def tiny(tiny_yaml: Path) -> Callable[..., RunConfig]:
    """tiny("a.b=c", ...) loads the configuration with these overrides."""
    return lambda *overrides: load_config(tiny_yaml, overrides)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps device and precision for the whole process: reset them after every test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
