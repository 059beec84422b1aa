"""Training batches: which images form them, and the loader that reads these images.

Everything here depends only on seed, epoch, image id and step. Batches are the same for any number of worker processes
and of training processes, and after a run is resumed within an epoch.
"""

from __future__ import annotations

import hashlib
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from heads.images import UnreadableImage, read_image
from resnet_backbone.errors import InvalidValue, UserError
from tools.devices import keep_freed_memory
from tools.failures import LESS_MEMORY, SYSTEM_WIDE, ProcessLost, explain

from .coco import ImageRecord
from .guard import Failed, augment_record, describe, read_record
from .packing import Packer, Unpacker


class Records(Protocol):
    """A split: `CocoData` or `LabelledData`."""

    @property
    def records(self) -> Sequence[Any]:
        """Images with their annotations; each has an `image_id`."""
        ...

    def wide(self) -> list[bool]:
        """Whether each image is wider than tall."""
        ...


class Augmentation(Protocol):
    """A random transform of an image and its target. The result depends only on the arguments of the call."""

    def __call__(self, image: np.ndarray, record: Any, seed: int, /) -> tuple[Tensor, Any]:
        """Augment one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            record: the image's annotations.
            seed: seed of everything random.

        Returns:
            The image, (3, h, w), and its target.
        """
        ...


@dataclass(frozen=True)
class Batch:
    """A batch of N images.

    Attributes:
        images: N tensors (3, h, w), RGB 0..255; uint8, or float32 if the augmentation's `resize` is "torch".
        targets: N `Targets`, or N labels.
        image_ids: N ids, numbers or texts.
        skipped: messages about images that could not be read and were replaced.
    """

    images: list[Tensor]
    targets: list[Any]
    image_ids: list[int | str]
    skipped: list[str]

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while the CPU goes on; labels stay as they are."""
        images = [image.pin_memory() for image in self.images]
        targets = [target.pin_memory() if hasattr(target, "pin_memory") else target for target in self.targets]
        return Batch(images, targets, self.image_ids, self.skipped)


@dataclass(frozen=True)
class Draw:
    """One place in a batch.

    Attributes:
        index: index of the record.
        epoch: epoch, from 0; the augmentation depends on it.
    """

    index: int
    epoch: int


class BatchSource(Protocol):
    """A data set that makes whole batches: `TrainingImages` or `ImagesToScore`."""

    data: Records

    def batch(self, draws: Sequence[Draw], /) -> Batch:
        """Load the images of a batch."""
        ...


class TrainingImages(Dataset[tuple[Tensor, Any, int | str, str | None]]):
    """Data set of augmented images, indexed by `Draw`."""

    def __init__(
        self,
        data: Records,
        augment: Augmentation,
        *,
        seed: int,
        on_bad_image: str,
        read: Callable[[Any], np.ndarray] | None = None,
    ) -> None:
        """Create the data set.

        Args:
            data: the split.
            augment: augmentation of each image.
            seed: seed of the augmentation.
            on_bad_image: "stop" raises on an unreadable image; "skip" takes the next readable one instead.
            read: function from a record to its image, (H, W, 3) uint8 RGB; `read_checked` if None.
        """
        self.data, self.augment, self.seed, self.on_bad_image = data, augment, seed, on_bad_image
        self.read = read or read_checked

    def __len__(self) -> int:
        return len(self.data.records)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Any, int | str, str | None]:
        """Read and augment an image.

        Args:
            draw: which image, in which epoch.

        Returns:
            The image (3, h, w), its target, its id, and a message if it replaces an unreadable image, else None.

        Raises:
            UnreadableImage: the image cannot be read and `on_bad_image` is "stop", or no image can be read.
            UserError: as for `guard.read_record` and `guard.augment_record`; no other error leaves this method.
        """
        message = None
        for offset in range(len(self)):
            record = self.data.records[(draw.index + offset) % len(self)]
            try:
                image = read_record(self.read, record)
            except UnreadableImage as error:
                if self.on_bad_image == "stop":
                    raise
                message = message or f"{error}; image {record.image_id} was replaced by the next one"
                continue
            seed = int(np.random.SeedSequence([self.seed, draw.epoch, seed_of(record.image_id)]).generate_state(1)[0])
            pixels, target = augment_record(self.augment, image, record, seed)
            return pixels, target, record.image_id, message
        raise UnreadableImage(f"none of the {len(self)} images can be read; the first error: {message}")

    def batch(self, draws: Sequence[Draw]) -> Batch:
        """Load the images of a batch; errors as for a single one."""
        return collate([self[draw] for draw in draws])


def read_checked(record: ImageRecord, *, max_pixels: int | None = None) -> np.ndarray:
    """Read an image and check its size.

    Args:
        record: the image's path and size.
        max_pixels: as for `heads.images.read_image`.

    Returns:
        (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Raises:
        UnreadableImage: the file cannot be read, or its size differs from that in the annotations.
    """
    image = read_image(record.path, max_pixels=max_pixels)
    if image.shape[:2] != (record.size.height, record.size.width):
        raise UnreadableImage(
            f"{record.path} is {image.shape[1]}x{image.shape[0]} (upright, by its EXIF orientation), its annotations "
            f"are for {record.size.width}x{record.size.height}: correct the file's orientation or the annotations"
        )
    return image


class BatchPlan(Sampler[list[Draw]]):
    """The batches of one process, over as many epochs as they take.

    Each epoch is a new permutation of the images. With aspect groups, tall and wide images form separate batches, in
    the order in which these are full; the remaining images form mixed batches. The last batch of an epoch is filled
    with the first images of its permutation. Process `rank` of `world` takes every `world`-th image of each batch, so
    that the batches do not depend on the number of processes.
    """

    def __init__(
        self,
        data: Records,
        *,
        batch_size: int,
        seed: int,
        span: tuple[int, int],
        group_by_aspect: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Create the plan.

        Args:
            data: the split.
            batch_size: images per batch, over all processes.
            seed: seed of the permutations.
            span: first batch, and the batch to stop before, counted from the beginning of the run.
            group_by_aspect: whether tall and wide images form separate batches.
            rank: index of this process.
            world: number of processes.

        Raises:
            InvalidValue: `batch_size` is no multiple of `world`.
        """
        if batch_size % world:
            raise InvalidValue(
                f"a batch of {batch_size} images cannot be shared by {world} processes: make it a multiple"
            )
        self.wide = data.wide() if group_by_aspect else [False] * len(data.records)
        self.batch_size, self.seed, self.span, self.rank, self.world = batch_size, seed, span, rank, world

    @property
    def per_epoch(self) -> int:
        """Batches per epoch."""
        return -(-len(self.wide) // self.batch_size)

    def __len__(self) -> int:
        return self.span[1] - self.span[0]

    def __iter__(self) -> Iterator[list[Draw]]:
        start, stop = self.span
        for position in range(start, stop):
            epoch, within = divmod(position, self.per_epoch)
            if within == 0 or position == start:
                batches = self.epoch(epoch)
            yield [Draw(index, epoch) for index in batches[within][self.rank :: self.world]]

    def epoch(self, epoch: int) -> list[list[int]]:
        """Compute the batches of one epoch, for all processes together.

        Args:
            epoch: epoch, from 0.

        Returns:
            `per_epoch` lists of `batch_size` record indices.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.wide)).tolist()
        groups: dict[bool, list[int]] = {False: [], True: []}
        batches = []
        for index in order:
            group = groups[self.wide[index]]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        remaining = groups[False] + groups[True]
        batches += [remaining[i : i + self.batch_size] for i in range(0, len(remaining), self.batch_size)]
        missing = self.batch_size - len(batches[-1])
        batches[-1] += [order[i % len(order)] for i in range(missing)]
        return batches


def seed_of(image_id: int | str) -> int:
    """A number for an image id, to seed with.

    Args:
        image_id: a number or a text.

    Returns:
        The id itself if it is not negative; otherwise the first bytes of a hash of its text.
    """
    if isinstance(image_id, int) and image_id >= 0:
        return image_id
    return int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:8], "big")


def collate(samples: Sequence[tuple[Tensor, Any, int | str, str | None]]) -> Batch:
    """Join samples of `TrainingImages` into a batch; images keep their sizes."""
    images, targets, image_ids, messages = zip(*samples)
    skipped = [message for message in messages if message is not None]
    return Batch(list(images), list(targets), list(image_ids), skipped)


class Batches(Iterable[Batch]):
    """The batches of one process; iterating starts the loader processes, once per run.

    Args:
        images: the data set.
        plan: the batches of this process.
        workers: number of loader processes; 0 reads in this process.
        pin: whether the batches lie in page-locked memory. torch's loader would pin in a thread of its own, but that
            thread sees the bytes that were sent and not the tensors, so this class pins what it has unpacked.
    """

    def __init__(
        self, images: BatchSource, plan: Sampler[list[Draw]] | Sequence[list[Draw]], workers: int, *, pin: bool = False
    ) -> None:
        self.images, self.plan, self.workers, self.pin = images, plan, workers, pin

    def __len__(self) -> int:
        return len(cast(Sized, self.plan))

    def __iter__(self) -> Iterator[Batch]:
        """Load the batches.

        Raises:
            UserError: an image cannot be used, with its name, or the system is at fault; errors of loader processes
                arrive with their class and message.
            ProcessLost: a loader process was killed.
        """
        for batch in self._load():
            yield batch.pin_memory() if self.pin else batch

    def _load(self) -> Iterator[Batch]:
        if not self.workers:
            for draws in self.plan:
                yield self.images.batch(draws)
            return
        loader = DataLoader(
            _Packed(self.images),
            batch_sampler=cast(Any, self.plan),
            num_workers=self.workers,
            collate_fn=_unchanged,
            worker_init_fn=_prepare_worker,
            pin_memory=False,
            prefetch_factor=4,
        )
        unpacker = Unpacker()
        with _interrupts_held():
            iterator = iter(loader)
        while True:
            try:
                content = next(iterator)
                batch = unpacker.unpack(content) if isinstance(content, bytes) else content
            except StopIteration:
                return
            except (OSError, EOFError, RuntimeError) as error:
                if (known := _explain_lost(error)) is None:
                    raise
                # the traceback keeps the iterator alive: while it watches its processes, torch raises again at any line
                getattr(iterator, "_shutdown_workers", int)()
                raise known from error
            if isinstance(batch, Failed):
                raise batch.error()
            yield batch


def make_loader(images: TrainingImages, plan: BatchPlan, *, workers: int, pin: bool = False) -> Batches:
    """Create the loader of a run. Its workers start once per run and use one thread of OpenCV and of torch each.

    Args:
        images: the data set.
        plan: the batches of this process.
        workers: number of worker processes; 0 reads in this process.
        pin: whether the batches lie in page-locked memory, for non-blocking copies to a GPU.

    Returns:
        The batches.
    """
    return Batches(images, plan, workers, pin=pin)


class _Packed(Dataset[Any]):
    """Whole batches as bytes (`packing`), or the error that there was instead.

    The batch is packed here, within the `try`: torch would do it in a thread, where a full /dev/shm or a lack of file
    descriptors loses the batch, and the training process waits for it for ever.
    """

    def __init__(self, images: BatchSource) -> None:
        self.images = images
        self.packer = Packer()

    def __getitem__(self, draw: Draw) -> Any:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw]) -> bytes | Failed:
        try:
            return self.packer.pack(self.images.batch(draws))
        except Exception as error:
            records = self.images.data.records
            return Failed.of(error, "; ".join(describe(records[draw.index]) for draw in draws))


def _explain_lost(error: Exception) -> UserError | None:
    """What it means that a batch cannot be fetched from its loader process; None for a bug."""
    system = isinstance(error, OSError) and error.errno in SYSTEM_WIDE
    if system or isinstance(error, RuntimeError):
        return explain(error)
    # the socket of a process that has ended
    return ProcessLost(f"a loader process does not answer ({type(error).__name__}: {error}): {LESS_MEMORY}")


def _unchanged(content: Any) -> Any:
    return content


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back, also in the processes that are started meanwhile, for as long as they live.

    Ctrl-C reaches all processes of a terminal; the training process decides when the loader stops.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(_: int) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where `_interrupts_held` cannot hold it
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory(largest_mib=32, kept_mib=128)
    warnings.simplefilter("ignore", DeprecationWarning)
