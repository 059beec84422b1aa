"""The data set that is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.config.detection import RunConfig
from tools.data.coco import CocoData
from tools.jobs.detection_data import load_train

SIDES_PX, LONG_SIDE_PX = (640, 672, 704, 736, 768, 800), 1333


def load(folder: Path) -> CocoData:
    """Read the training split of a data set.

    Args:
        folder: as `train_det.py --data` takes it.

    Returns:
        Its images with objects.
    """
    return load_train(config_of(folder))


def config_of(folder: Path) -> RunConfig:
    """Settings of a run on this data set, with masks and COCO's usual sizes.

    Args:
        folder: as `train_det.py --data` takes it.

    Returns:
        The settings.
    """
    values: dict[str, Any] = {
        "out": "not-written",
        "model": {"recipe": "mask_rcnn_r50_fpn"},
        "data": {"folder": str(folder)},
        "input": {"short_side_px": list(SIDES_PX), "long_side_px": LONG_SIDE_PX},
        "schedule": {"iters": 1},
    }
    return RunConfig.model_validate(values)
