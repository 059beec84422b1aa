"""Batches arrive unchanged, and their memory is used again only after they are gone."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from heads import BitMasks, PolygonMasks, Targets
from tools.data.loader import Batch
from tools.data.packing import Packer, Unpacker


def batch(seed: int, side: int = 60) -> Batch:
    """Two images, with polygons and with bitmaps."""
    rng = np.random.default_rng(seed)
    images = [torch.from_numpy(rng.integers(0, 256, (3, side, side + i), dtype=np.uint8)) for i in range(2)]
    boxes, labels = torch.from_numpy(rng.random((3, 4), dtype=np.float32)), torch.arange(3)
    polygons = PolygonMasks(tuple((rng.random((vertices, 2)),) for vertices in (3, 400, 5)))
    bits = BitMasks(torch.from_numpy(rng.random((3, side, side)) > 0.5))
    return Batch(images, [Targets(boxes, labels, polygons), Targets(boxes, labels, bits)], [seed, "b"], ["none"])


def values(content: Batch) -> list[bytes]:
    polygons, bits = (target.masks for target in content.targets)
    arrays_of = [*content.images, *(part for t in content.targets for part in (t.boxes, t.labels)), bits.bits]
    return [a.numpy().tobytes() for a in arrays_of] + [p.tobytes() for ps in polygons.polygons for p in ps]


def test_batches_arrive_unchanged_in_memory_that_is_used_again() -> None:
    packer, unpacker = Packer(), Unpacker()
    for seed in range(20):
        received = unpacker.unpack(packer.pack(batch(seed)))
        assert values(received) == values(batch(seed)) and received.image_ids == [seed, "b"]
        assert [image.dtype for image in received.images] == [torch.uint8] * 2
        received.images[0] += 1  # it is writable
    assert packer._made == 2  # a batch is dropped only after the next one has arrived


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 150), st.integers(0, 6), st.integers(0, 5)), min_size=1, max_size=25),
)
def test_a_batch_that_is_held_is_never_overwritten(steps: list[tuple[int, int, int]]) -> None:
    """Batches of any size, dropped in any order; of some, only one tensor or one polygon is held."""
    packer, unpacker = Packer(), Unpacker()
    held: list[tuple[Any, bytes]] = []
    for seed, (side, drop, part) in enumerate(steps):
        content = unpacker.unpack(packer.pack(batch(seed, side)))
        kept = [
            content.images[0],
            content.images[1][1, 1:],
            content.targets[0].masks.polygons[1][0][2:],
            content.targets[1].masks.bits[0],
            content.targets[1].boxes,
            content.images[0].numpy()[0],
        ][part]
        del content
        held.append((kept, np.asarray(kept).tobytes()))
        del held[drop : drop + 2], kept
        assert all(np.asarray(array).tobytes() == before for array, before in held)


def test_blocks_that_became_too_small_are_given_up_on_both_sides() -> None:
    packer, unpacker = Packer(), Unpacker()
    for side in (100, 500, 100, 800, 100):
        unpacker.unpack(packer.pack(batch(0, side)))
        gc.collect()
    assert len(packer._blocks) == len(unpacker._blocks) == 1 and packer._made == 3


def test_blocks_of_several_processes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacker, received = Unpacker(), []
    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        received.append(unpacker.unpack(Packer().pack(batch(process))))
    assert values(received[0]) == values(batch(1)) and values(received[1]) == values(batch(2))


def test_an_error_while_packing_leaves_both_sides_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    packer, unpacker = Packer(), Unpacker()
    first = unpacker.unpack(packer.pack(batch(0)))

    def full(size: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm)")

    with monkeypatch.context() as patch:
        patch.setattr(torch.UntypedStorage, "_new_shared", full)
        with pytest.raises(RuntimeError, match="unable to allocate"):
            packer.pack(batch(1))
    second = unpacker.unpack(packer.pack(batch(2)))
    assert values(first) == values(batch(0)) and values(second) == values(batch(2))


@settings(max_examples=60, deadline=None)
@given(
    content=st.lists(
        arrays(st.sampled_from([np.uint8, np.float32, np.int64, np.bool_]), array_shapes(min_side=0, max_side=40)),
        max_size=4,
    )
)
def test_arrays_and_tensors_of_any_size_and_type_arrive_unchanged(content: list[np.ndarray]) -> None:
    packer, unpacker = Packer(), Unpacker()
    sent = [content, [torch.from_numpy(array).transpose(0, -1) for array in content], Path("a"), None]
    received = unpacker.unpack(packer.pack(sent))
    assert received[2:] == sent[2:]
    for part in (0, 1):
        for a, b in zip(sent[part], received[part], strict=True):
            assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
            assert np.array_equal(np.asarray(a), np.asarray(b), equal_nan=a.dtype in (np.float32, torch.float32))
