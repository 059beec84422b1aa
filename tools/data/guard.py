"""Failures while a sample is read, augmented and joined to a batch, as errors that name the image.

Codecs, albumentations, OpenCV and pycocotools raise any kind of error, and none of them knows which image it was given.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from heads.images import UnreadableImage
from resnet_backbone.errors import UserError
from tools.failures import SYSTEM_WIDE, explain, system_error

from .coco import ImageRecord

Record = TypeVar("Record")
Sample = TypeVar("Sample")
MAX_CAUSE = 300  # characters of another library's message that are quoted


class UnusableSample(UserError, RuntimeError):
    """An image, or an annotation of it, that a library failed on; the message names both."""


class WorkerTraceback(Exception):
    """The traceback of an error in a loader process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def read_record(read: Callable[[Record], np.ndarray], record: Record) -> np.ndarray:
    """Read the image of a record. Whatever fails is raised as a `UserError` that names the image.

    Args:
        read: reads the image of a record, (H, W, 3) uint8 RGB.
        record: the record.

    Returns:
        What `read` returned.

    Raises:
        UnreadableImage: the image cannot be read.
        SystemFailure: the system is at fault, and not this image: too many open files, for example.
        OutOfMemory: there is not enough memory.
    """
    try:
        return read(record)
    except Exception as error:
        cause = system_error(error)
        if cause is not None and cause.errno not in SYSTEM_WIDE:
            cause = None
        known = explain(cause or error) if cause is not None or isinstance(error, MemoryError) else None
        if known is not None:
            raise _named(known, record) from error
        if isinstance(error, UserError):
            named = _named(error, record)
            if named is error:
                raise
            raise named from error
        raise UnreadableImage(
            f"{describe(record)} cannot be read as an image ({_quote(error)}): replace or remove it"
        ) from error


def augment_record(
    augment: Callable[[np.ndarray, Record, int], Sample], image: np.ndarray, record: Record, seed: int
) -> Sample:
    """Augment an image. Whatever fails is raised as a `UserError` that names the image, and the object if it is one.

    Args:
        augment: the augmentation, as `Augmentation`.
        image: (H, W, 3) uint8 RGB.
        record: its record.
        seed: random seed.

    Returns:
        What `augment` returned.

    Raises:
        UnusableSample: a library failed on the image or on one of its annotations.
        UserError: the error of the augmentation, with the name of the image.
    """
    try:
        return augment(image, record, seed)
    except Exception as error:
        known = error if isinstance(error, UserError) else explain(error)
        if known is not None:
            named = _named(known, record)
            if named is error:
                raise
            raise named from error
        raise UnusableSample(
            f"{describe(record)}{_failing_object(augment, image, record, seed)} cannot be augmented ({_quote(error)}): "
            "correct the image or its annotations, or remove them from the data set"
        ) from error


def describe(record: Any) -> str:
    """The file of a record and its image id, for a message."""
    name = getattr(record, "path", None) or getattr(record, "name", None)
    return f"image {record.image_id}" if name is None else f"{name} (image {record.image_id})"


@dataclass(frozen=True)
class Failed:
    """An error of a loader process on its way to the training process.

    torch would raise it there with the traceback in its message, and would lose its cause.

    Attributes:
        kind: the class of the error.
        message: its message.
        trace: its traceback.
    """

    kind: type[UserError]
    message: str
    trace: str

    @classmethod
    def of(cls, error: Exception, images: str) -> Failed:
        """Take an error.

        Args:
            error: any error.
            images: which images were being loaded, for errors that do not say so.
        """
        known = error if isinstance(error, UserError) else explain(error)
        if known is None:
            known = UnusableSample(f"{images} cannot be loaded ({_quote(error)}): correct or remove them")
        return cls(type(known), str(known), "".join(traceback.format_exception(error)))

    def error(self) -> UserError:
        """The error, with the traceback of the loader process as its cause."""
        error = self.kind(self.message)
        error.__cause__ = WorkerTraceback(self.trace)
        return error


def _named(error: UserError, record: Any) -> UserError:
    """The error itself if its message names the image, otherwise one of its class that does."""
    name = getattr(record, "path", None) or getattr(record, "name", None)
    if name is not None and str(name) in str(error):
        return error
    return type(error)(f"{describe(record)}: {error}")


def _quote(error: BaseException) -> str:
    """Class and message of another library's error, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MAX_CAUSE]}" if text else type(error).__name__


def _failing_object(augment: Callable[[np.ndarray, Any, int], Any], image: np.ndarray, record: Any, seed: int) -> str:
    """Which object an augmentation fails on: it is run with none, and then with each alone."""
    if not isinstance(record, ImageRecord):
        return ""

    def fails(rows: slice) -> bool:
        part = replace(
            record,
            boxes=record.boxes[rows],
            labels=record.labels[rows],
            segmentations=record.segmentations[rows],
            object_ids=record.object_ids[rows],
        )
        try:
            augment(image, part, seed)
        except Exception:
            return True
        return False

    if fails(slice(0, 0)):
        return ""
    for row, box in enumerate(record.boxes):
        if fails(slice(row, row + 1)):
            x1, y1, x2, y2 = (round(float(side), 2) for side in box)
            name = "" if record.object_ids[row] is None else f"annotation {record.object_ids[row]}, "
            return f", {name}object {row + 1} of {len(record.boxes)} (box {x1:g}, {y1:g} to {x2:g}, {y2:g})"
    return ""
