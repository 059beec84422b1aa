"""The rows of the benchmark, by name. Their modules are imported when they run: some import slow packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from resnet_backbone.errors import InvalidValue, did_you_mean

from .contenders import Comparison
from .setting import Setting


class Row(NamedTuple):
    """A row.

    Attributes:
        what: a description.
        module: where its function is, in this package.
        function: the function.
    """

    what: str
    module: str
    function: str


ROWS = {
    "inference": Row("whole Mask R-CNN R50-FPN, from pictures to bitmaps", "inference", "inference"),
    "dense": Row("backbone, FPN and RPN head", "inference", "dense"),
    "roi_align": Row("RoIAlign forward and backward, box and mask settings", "roi_align", "roi_align_row"),
    "training": Row("training step of two images", "training", "training"),
    "loader": Row("training images of one worker", "data", "loader"),
    "masks": Row("masks of 100 detections to run lengths", "masks", "masks"),
    "scoring": Row("boxes and masks by every backend", "scoring", "scoring"),
    "start_up": Row("imports and --help in new processes", "start_up", "start_up"),
    "memory": Row("peak memory of a training step, of inference and of masks", "memory", "memory"),
    "growth_size": Row("inference by image size", "growth", "growth_size"),
    "growth_batch": Row("inference by batch", "growth", "growth_batch"),
    "growth_instances": Row("masks to run lengths by their number", "growth", "growth_instances"),
    "growth_cores": Row("inference by threads", "growth", "growth_cores"),
}


def check_rows(names: Sequence[str]) -> None:
    """Check names of rows.

    Args:
        names: the names.

    Raises:
        InvalidValue: one is unknown.
    """
    for name in names:
        if name not in ROWS:
            raise InvalidValue(f"--rows {name} is unknown: {did_you_mean(name, ROWS)} (rows: {', '.join(ROWS)})")


def comparisons(name: str, setting: Setting) -> Iterator[Comparison]:
    """The comparisons of a row; each is to be measured before the next is asked for.

    Args:
        name: a key of `ROWS`.
        setting: how to run.

    Returns:
        The comparisons.
    """
    row = ROWS[name]
    module = importlib.import_module(f"{__package__}.{row.module}")
    function: Callable[[Setting], Iterator[Comparison]] = getattr(module, row.function)
    return function(setting)
