"""What a benchmark runs with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from heads.images import read_image
from resnet_backbone.errors import InvalidValue
from tools.devices import pick_precision, processor_has

SUFFIXES = (".jpg", ".jpeg", ".png")
NO_AMX = "not measurable: no AMX"


@dataclass(frozen=True)
class Sizes:
    """Sizes that the measurements share.

    Attributes:
        short_side_px: short side of resized images, pixels.
        long_side_px: largest long side of resized images, pixels.
        proposals: regions of an image that the box head sees in inference.
        matrix: side of the matrices whose product gives the arithmetic limit.
        images: pictures that a row runs on.
    """

    short_side_px: int = 800
    long_side_px: int = 1333
    proposals: int = 1000
    matrix: int = 4096
    images: int = 2


QUICK = Sizes(short_side_px=128, long_side_px=192, proposals=100, matrix=1024, images=1)


@dataclass(frozen=True)
class Setting:
    """What a benchmark runs with.

    Attributes:
        device: "cpu" or "cuda".
        repeats: measurements of every contender.
        quick: small sizes, to see that everything runs; the figures mean nothing.
        images: folder with pictures; None for those of `data`, or generated ones.
        data: folder of a data set, as `train_det.py --data` reads it; None for generated images of shapes.
        scoring_images: images of the scoring row.
        say: called with a line of progress.

    Raises:
        InvalidValue: `repeats` or `scoring_images` is not positive.
    """

    device: str = "cpu"
    repeats: int = 5
    quick: bool = False
    images: Path | None = None
    data: Path | None = None
    scoring_images: int = 5000
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        for option, value in (("--repeats", self.repeats), ("--scoring-images", self.scoring_images)):
            if value < 1:
                raise InvalidValue(f"{option} is {value}: give at least 1")

    @property
    def sizes(self) -> Sizes:
        """The sizes of the measurements."""
        return QUICK if self.quick else Sizes()

    @property
    def on_cuda(self) -> bool:
        """Whether the benchmark runs on a GPU."""
        return self.device == "cuda"

    @property
    def no_bf16(self) -> str:
        """Why bf16 is not measured; empty if it is."""
        if self.on_cuda:
            return "" if pick_precision("auto", "cuda") == "bf16" else "not measurable: this GPU has no bf16"
        return "" if processor_has("amx_bf16") else NO_AMX

    def synchronise(self) -> None:
        """Wait for the GPU, before the clock is read."""
        if self.on_cuda:
            torch.cuda.synchronize()

    @cached_property
    def pictures(self) -> tuple[np.ndarray, ...]:
        """The pictures that detectors run on, (H, W, 3) uint8 RGB.

        Raises:
            InvalidValue: the folder has too few of them.
        """
        count = self.sizes.images
        if self.images is not None:
            return tuple(read_image(path) for path in pictures_in(self.images, count))
        if self.data is not None:
            from .data_set import load  # not at the top: `--help` does not need the readers of data

            records = load(self.data).records
            return tuple(read_image(records[i].path) for i in range(min(count, len(records))))
        return generated_pictures(count, 480)


def pictures_in(folder: Path, count: int) -> Sequence[Path]:
    """The first pictures of a folder and of those in it, by name.

    Args:
        folder: the folder.
        count: how many.

    Returns:
        `count` paths.

    Raises:
        InvalidValue: there are fewer.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)[:count]
    if len(found) < count:
        raise InvalidValue(
            f"--images {folder} holds {len(found)} pictures ({', '.join(SUFFIXES)}), {count} are needed: give another "
            "folder, or leave --images out for generated ones"
        )
    return found


def generated_pictures(count: int, side_px: int) -> tuple[np.ndarray, ...]:
    """Images of the "shapes" data set.

    Args:
        count: how many.
        side_px: short side, pixels.

    Returns:
        `count` of (H, W, 3) uint8 RGB.
    """
    from tools.data.shapes import ShapesSettings, make_sample  # not at the top: `--help` does not need OpenCV

    settings = replace(ShapesSettings(), side_px=side_px)
    return tuple(make_sample(settings, "val", index)[0] for index in range(count))
