"""Rows that are plotted: growth with image size, batch, instances and cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .contenders import Comparison, Contender
from .inference import TORCHVISION, our_work, their_work
from .masks import masks_comparison
from .models import as_tensors, pair
from .setting import Setting

FAST = "for_inference()"


def growth_size(setting: Setting) -> Iterator[Comparison]:
    """Inference of one picture by the short side of the resized image.

    Args:
        setting: how to run.

    Yields:
        A comparison for every size.
    """
    both, picture = pair(setting), setting.pictures[:1]
    options = both.theirs.transform.min_size, both.theirs.transform.max_size
    fast = both.ours.for_inference()
    usual = fast.preprocess
    try:
        for side in (96, 128) if setting.quick else (400, 600, 800, 1000, 1200):
            both.theirs.transform.min_size, both.theirs.transform.max_size = (side,), 2 * side
            fast.preprocess = replace(usual, short_side_px=side, long_side_px=2 * side)
            contenders = _both(their_work(both.theirs, picture, setting.device), our_work(fast, picture))
            yield _growth("growth_size", f"inference, short side {side} px", contenders, (side, "short side, pixels"))
    finally:
        both.theirs.transform.min_size, both.theirs.transform.max_size = options


def growth_batch(setting: Setting) -> Iterator[Comparison]:
    """Inference of a batch of equal pictures, resized, by the number of them; the time is the whole batch's.

    Args:
        setting: how to run.

    Yields:
        A comparison for every number.
    """
    both, picture = pair(setting), setting.pictures[0]
    fast = both.ours.for_inference()
    for number in (1, 2) if setting.quick else (1, 2, 4, 8):
        pictures = [picture] * number
        contenders = _both(
            _batch_of_theirs(both.theirs, pictures, setting.device), our_work(fast, pictures, batch_size=number)
        )
        comparison = _growth(
            "growth_batch", f"inference, batches of {number}", contenders, (number, "images in a batch")
        )
        yield replace(comparison, items=(number, "images"))


def growth_instances(setting: Setting) -> Iterator[Comparison]:
    """Masks to RLE at 480x640 px by the number of detections.

    Args:
        setting: how to run.

    Yields:
        A comparison for every number.
    """
    for number in (1, 5) if setting.quick else (1, 10, 30, 100, 300):
        yield masks_comparison("growth_instances", number, 480, 640, (number, "detections"))


def growth_cores(setting: Setting) -> Iterator[Comparison]:
    """Inference of one picture by the number of threads.

    Args:
        setting: how to run.

    Yields:
        A comparison for every number.
    """
    both, picture = pair(setting), setting.pictures[:1]
    fast = both.ours.for_inference()
    before, number, cores = torch.get_num_threads(), 1, os.cpu_count() or 1
    try:
        while number <= cores:
            torch.set_num_threads(number)
            contenders = _both(their_work(both.theirs, picture, setting.device), our_work(fast, picture))
            yield _growth("growth_cores", f"inference, {number} threads", contenders, (number, "threads"))
            number *= 2
    finally:
        torch.set_num_threads(before)


def _both(theirs: Callable[[], None], ours: Callable[[], None]) -> list[Contender]:
    return [Contender(TORCHVISION, theirs), Contender(FAST, ours, ours=True)]


def _growth(row: str, title: str, contenders: Sequence[Contender], x: tuple[float, str]) -> Comparison:
    return Comparison(row, title, contenders, reference=TORCHVISION, items=(1, "images"), x=x)


def _batch_of_theirs(model: Any, pictures: Sequence[np.ndarray], device: str) -> Callable[[], None]:
    def work() -> None:
        with torch.inference_mode():
            outputs = model([tensor.to(device) for tensor in as_tensors(pictures)])
        for output in outputs:
            _ = output["masks"].cpu() > 0.5

    return work
