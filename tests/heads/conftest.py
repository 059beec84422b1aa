"""A detector small enough to train in a test: every part of Mask R-CNN, none of its width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from heads import DETECTORS, BitMasks, DetectorRecipe, ImageBatch, ImageSize, PolygonMasks, Targets
from heads.mask_head import MaskHeadSpec
from heads.masks import polygons_from


@pytest.fixture(scope="session")
def small_recipe() -> DetectorRecipe:
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
    def make(count: int = 2, height: int = 64, width: int = 96) -> ImageBatch:
        return ImageBatch(torch.randn(count, 3, height, width), (ImageSize(height, width),) * count)

    return make


@pytest.fixture(scope="session")
def make_targets() -> Callable[..., Targets]:
    """Boxes -> targets whose masks are diamonds in the boxes (or empty bitmaps of the given height and width)."""

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
