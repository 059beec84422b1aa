"""Containers are checked on construction, can be indexed and moved, and are registered with pytree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from heads import BitMasks, Detections, ImageBatch, ImageSize, PolygonMasks, Proposals, RoiMasks, Targets
from resnet_backbone import Preprocess

SQUARE = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])


def detections(count: int = 4, masks: bool = True) -> Detections:
    return Detections(
        torch.rand(count, 4),
        torch.rand(count),
        torch.arange(count),
        RoiMasks(torch.rand(count, 7, 7)) if masks else None,
    )


def targets(count: int = 4) -> Targets:
    return Targets(torch.rand(count, 4), torch.arange(count), PolygonMasks(((SQUARE,),) * count))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Targets(torch.zeros(4), torch.zeros(1, dtype=torch.int64)),
            r"Targets.boxes must be \(R, 4\).*got \(4,\)",
        ),
        (lambda: Proposals(torch.zeros(2, 5), torch.zeros(2)), r"Proposals.boxes must be \(R, 4\).*got \(2, 5\)"),
        (lambda: Proposals(torch.zeros(2, 4).half(), torch.zeros(2)), "float32 or float64.*torch.float16"),
        (lambda: Proposals(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2)), "torch.int64"),
        (
            lambda: Proposals(torch.zeros(2, 4), torch.zeros(3)),
            "Proposals has 2 boxes but 3 scores: give one entry per box",
        ),
        (
            lambda: Targets(torch.zeros(2, 4), torch.zeros(2)),
            "labels must be int64 class indices 0..K-1, got torch.float32",
        ),
        (
            lambda: Targets(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), PolygonMasks(())),
            "Targets has 2 boxes but 0 masks",
        ),
        (lambda: ImageBatch(torch.zeros(3, 4, 4), (ImageSize(4, 4),)), r"ImageBatch takes pixels \(N, 3, H, W\)"),
        (lambda: ImageBatch(torch.zeros(2, 3, 4, 4), (ImageSize(4, 4),)), "1 sizes"),
    ],
)
def test_construction_refuses_invalid_parts(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(1, 3), [1, 2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.tensor([3, 1, 1]), [3, 1, 1]),
        (torch.zeros(4, dtype=torch.bool), []),
        (torch.zeros(0, dtype=torch.int64), []),
    ],
    ids=["slice", "mask", "indices", "empty mask", "no indices"],
)
def test_indexing_selects_the_same_rows_of_every_part(index: Tensor | slice, rows: list[int]) -> None:
    indexed, original = detections()[index], detections()
    assert indexed.labels.tolist() == rows and len(indexed) == len(rows) and isinstance(indexed.masks, RoiMasks)
    assert len(indexed.masks) == len(rows) and indexed.boxes.shape == (len(rows), 4)
    assert len(original) == 4  # indexing does not change the original
    assert targets()[index].labels.tolist() == rows and len(targets()[index].masks or ()) == len(rows)


def test_detections_without_masks_stay_without_masks() -> None:
    assert detections(masks=False)[:2].masks is None and detections(masks=False).to("cpu").masks is None


def test_to_moves_every_tensor_and_keeps_polygons() -> None:
    moved = detections().to("meta")
    assert moved.masks is not None
    tensors = (moved.boxes, moved.scores, moved.labels, moved.masks.probabilities)  # type: ignore[union-attr]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    target = targets()
    assert target.to("meta").masks is target.masks and target.to("meta").boxes.is_meta
    batch = ImageBatch(torch.zeros(1, 3, 4, 4), (ImageSize(4, 4),)).to("meta")
    assert batch.pixels.is_meta and batch.sizes == (ImageSize(4, 4),)


@pytest.mark.parametrize(
    "value",
    [
        detections(),
        detections(masks=False),
        targets(),
        Targets(torch.rand(1, 4), torch.tensor([2]), BitMasks(torch.ones(1, 3, 3, dtype=torch.bool))),
        Proposals(torch.rand(2, 4), torch.rand(2)),
        ImageBatch(torch.rand(2, 3, 4, 4), (ImageSize(4, 4), ImageSize(3, 2))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pytree_flattens_containers_to_tensors_and_restores_them(value: Any) -> None:
    leaves, spec = pytree.tree_flatten(value)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    assert tensors and not any(isinstance(leaf, (Detections, Targets, RoiMasks, BitMasks)) for leaf in leaves)
    restored = pytree.tree_unflatten(leaves, spec)
    assert type(restored) is type(value)
    restored_tensors = [leaf for leaf in pytree.tree_flatten(restored)[0] if isinstance(leaf, Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(tensors, restored_tensors))


def test_tree_map_applies_to_tensors_in_masks_and_lists() -> None:
    mapped = pytree.tree_map_only(Tensor, lambda t: t + 1, [detections()])[0]
    torch.manual_seed(0)
    assert mapped.labels.tolist() == [1, 2, 3, 4] and mapped.masks.probabilities.min() >= 1
    assert pytree.tree_map(lambda leaf: None, targets()).boxes is None  # placeholders of other types are not checked


def test_empty_detections_have_the_shapes_of_full_ones() -> None:
    empty = Detections.empty()
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.labels.dtype == torch.int64


def test_a_batch_of_images_is_normalised_and_padded_and_keeps_the_sizes() -> None:
    images = [
        torch.randint(0, 256, (3, 20, 33), dtype=torch.uint8),
        torch.randint(0, 256, (3, 31, 10), dtype=torch.uint8),
    ]
    batch = ImageBatch.from_images(images, Preprocess())
    assert batch.pixels.shape == (2, 3, 32, 64) and batch.sizes == (
        ImageSize(height=20, width=33),
        ImageSize(height=31, width=10),
    )
    for row, image in zip(batch.pixels, images):
        assert torch.equal(row[:, : image.shape[1], : image.shape[2]], Preprocess().normalise(image))
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
