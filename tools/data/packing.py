"""Batches on their way from a loader process to the training process, in shared memory that is used again.

New shared memory costs more than what is written to it: the system has to find and clear every page, and torch sends
a file descriptor per tensor through a socket. A loader process therefore keeps its blocks of shared memory. A batch
is pickled with its large arrays out of band, in one block; the training process reads these arrays in place, and
marks the block as free when the last of them is gone.
"""

from __future__ import annotations

import copyreg
import ctypes
import io
import os
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

_HEADER = _ALIGNMENT = 64  # bytes; the first byte of a block says whether a batch lies in it
_FREE, _USED = 0, 1
_SMALL = 4096  # bytes; smaller arrays are pickled with the objects
_STEP = 2**20  # bytes; sizes of blocks are multiples


@dataclass(frozen=True)
class Message:
    """What is sent for a batch.

    Attributes:
        body: the pickled batch without its large arrays.
        spans: where these lie in the block, bytes.
        block: number of the block, or None if there are no large arrays.
        memory: the block itself, the first time that it is used.
        dropped: numbers of blocks that are not used any more.
        sender: id of the process.
    """

    body: bytes
    spans: list[tuple[int, int]]
    block: int | None
    memory: Tensor | None
    dropped: list[int]
    sender: int


class Packer:
    """The sending side, one per loader process."""

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}
        self._made = 0

    def pack(self, content: Any) -> bytes:
        """Pack a batch.

        Args:
            content: picklable; tensors lie on the CPU.

        Returns:
            Bytes for `Unpacker.unpack` of another process, which must be given all of them in their order.

        Raises:
            RuntimeError: there is no shared memory left.
        """
        file, buffers = io.BytesIO(), []

        def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
            with buffer.raw() as raw:
                small = raw.nbytes < _SMALL
            if not small:
                buffers.append(np.frombuffer(buffer.raw(), dtype=np.uint8))
            return small

        _ArrayPickler(file, stays_in_band).dump(content)
        spans, size = [], _HEADER
        for buffer in buffers:
            spans.append((size, size + len(buffer)))
            size += -(-len(buffer) // _ALIGNMENT) * _ALIGNMENT
        body, sender = file.getvalue(), os.getpid()
        if not buffers:
            return bytes(ForkingPickler.dumps(Message(body, [], None, None, [], sender)))
        number = next((n for n, block in self._free().items() if len(block) >= size), None)
        if number is not None:
            block, message = self._blocks[number], Message(body, spans, number, None, [], sender)
        else:
            number, dropped = self._made + 1, list(self._free())
            size = max([-(-size // _STEP) * _STEP, *map(len, self._blocks.values())])
            memory = torch.tensor([], dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
            block, message = memory.numpy(), Message(body, spans, number, memory, dropped, sender)
        for (start, stop), buffer in zip(spans, buffers):
            block[start:stop] = buffer
        packed = bytes(ForkingPickler.dumps(message))
        # nothing above has changed this object: after an error, both sides still know the same blocks
        block[0] = _USED
        for dropped_number in message.dropped:
            del self._blocks[dropped_number]
        self._blocks[number], self._made = block, max(self._made, number)
        return packed

    def _free(self) -> dict[int, np.ndarray]:
        return {number: block for number, block in self._blocks.items() if block[0] == _FREE}


class Unpacker:
    """The receiving side, for any number of loader processes."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int], np.ndarray] = {}

    def unpack(self, packed: bytes) -> Any:
        """Unpack what `Packer.pack` returned.

        Args:
            packed: its result; those of one process in their order.

        Returns:
            The batch. Its large arrays and tensors lie in shared memory, which is theirs as long as one of them lives.
        """
        message: Message = ForkingPickler.loads(packed)
        for number in message.dropped:
            del self._blocks[message.sender, number]
        if message.block is None:
            return pickle.loads(message.body)
        key = message.sender, message.block
        if message.memory is not None:
            self._blocks[key] = message.memory.numpy()
        block = self._blocks[key]
        # what all arrays of the batch refer to; an array would not do, because views refer to the base of their base
        lease = (ctypes.c_ubyte * len(block)).from_buffer(block.data)
        weakref.finalize(lease, _release, block, os.getpid()).atexit = False
        memory = memoryview(lease)
        del lease
        return pickle.loads(message.body, buffers=[memory[start:stop] for start, stop in message.spans])


def _release(block: np.ndarray, owner: int) -> None:
    """Mark a block as free; a copy of the training process by fork has no say in this."""
    if os.getpid() == owner:
        block[0] = _FREE


class _ArrayPickler(pickle.Pickler):
    """Pickles tensors as arrays, and so out of band."""

    def __init__(self, file: io.BytesIO, stays_in_band: Callable[[pickle.PickleBuffer], bool]) -> None:
        super().__init__(file, 5, buffer_callback=stays_in_band)
        self.dispatch_table = {**copyreg.dispatch_table, Tensor: _reduce_tensor}


def _reduce_tensor(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[np.ndarray]]:
    return torch.from_numpy, (tensor.contiguous().numpy(),)
