"""Which images make which batch, and the loader that reads them.

Everything here is a function of (seed, epoch, image id, step): it does not matter which worker reads an image, how many
processes share a batch, or whether the run was resumed in the middle of an epoch.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from heads.images import UnreadableImage, read_image
from resnet_backbone.errors import InvalidValue

from .coco import ImageRecord


class Records(Protocol):
    """A split: `CocoData` or `LabelledData`."""

    @property
    def records(self) -> Sequence[Any]: ...


class Augmentation(Protocol):
    """A function of the seed given to each call, and of nothing else."""

    def __call__(self, image: np.ndarray, record: Any, seed: int, /) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Batch:
    """images: n of (3, h, w) uint8 RGB; targets: n, `Targets` or labels; image_ids: n; skipped: messages of images that
    were replaced."""

    images: list[Tensor]
    targets: list[Any]
    image_ids: list[int]
    skipped: list[str]


@dataclass(frozen=True)
class Draw:
    """One place in a batch: which record, in which epoch."""

    index: int
    epoch: int


class TrainingImages(Dataset[tuple[Tensor, Any, int, str | None]]):
    """A `Draw` -> image (3, h, w) uint8, its target, its id, and why another image was taken in its place, or None.

    read: a record -> its image, (H, W, 3) uint8; none reads COCO's (`read_checked`). on_bad_image: stop or skip.
    """

    def __init__(
        self,
        data: Records,
        augment: Augmentation,
        *,
        seed: int,
        on_bad_image: str,
        read: Callable[[Any], np.ndarray] | None = None,
    ) -> None:
        self.data, self.augment, self.seed, self.on_bad_image = data, augment, seed, on_bad_image
        self.read = read or read_checked

    def __len__(self) -> int:
        return len(self.data.records)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Any, int, str | None]:
        why = None
        for offset in range(len(self)):
            record = self.data.records[(draw.index + offset) % len(self)]
            try:
                image = self.read(record)
            except UnreadableImage as error:
                if self.on_bad_image == "stop":
                    raise
                why = why or f"{error}; image {record.image_id} was replaced by the next one"
                continue
            seed = int(np.random.SeedSequence([self.seed, draw.epoch, record.image_id]).generate_state(1)[0])
            pixels, target = self.augment(image, record, seed)
            return pixels, target, record.image_id, why
        raise UnreadableImage(f"none of the {len(self)} images can be read; the first error: {why}")


def read_checked(record: ImageRecord) -> np.ndarray:
    """The upright image; raises `UnreadableImage` where it has not the size that its annotations were made for."""
    image = read_image(record.path)
    if image.shape[:2] != (record.size.height, record.size.width):
        raise UnreadableImage(
            f"{record.path} is {image.shape[1]}x{image.shape[0]} (upright, by its EXIF orientation), its annotations "
            f"say {record.size.width}x{record.size.height}: mend the file's orientation or the annotations"
        )
    return image


class BatchPlan(Sampler[list[Draw]]):
    """The batches of one process from `start` to `stop` (counted in batches), over as many epochs as that takes.

    Every epoch is a new permutation. With aspect groups, tall and wide images fill separate batches in the order in
    which they complete; what is left over is mixed, and the last batch is filled from the epoch's beginning. Process
    `rank` of `world` takes every world-th image of each batch, so the batches do not depend on the number of processes.
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
        if batch_size % world:
            raise InvalidValue(
                f"a batch of {batch_size} images cannot be shared by {world} processes: make it a multiple"
            )
        self.wide = [group_by_aspect and r.size.width > r.size.height for r in data.records]
        self.batch_size, self.seed, self.span, self.rank, self.world = batch_size, seed, span, rank, world

    @property
    def per_epoch(self) -> int:
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
        """The whole batches (of all processes) of one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.wide)).tolist()
        waiting: dict[bool, list[int]] = {False: [], True: []}
        batches = []
        for index in order:
            group = waiting[self.wide[index]]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[False] + waiting[True]
        batches += [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]
        missing = self.batch_size - len(batches[-1])
        batches[-1] += [order[i % len(order)] for i in range(missing)]
        return batches


def collate(samples: Sequence[tuple[Tensor, Any, int, str | None]]) -> Batch:
    images, targets, ids, whys = zip(*samples)
    return Batch(list(images), list(targets), list(ids), [why for why in whys if why is not None])


def make_loader(images: TrainingImages, plan: BatchPlan, *, workers: int) -> DataLoader[Any]:
    """Workers start once for the whole run; each keeps to one thread of OpenCV and torch."""
    return DataLoader(
        images,
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_prepare_worker,
        pin_memory=False,
        prefetch_factor=4 if workers else None,
    )


def _prepare_worker(_: int) -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the trainer decides, after its step
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
