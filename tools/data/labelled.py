"""Images with one label each: a folder with one folder per class, a zip of one, or the python batches of CIFAR-10.

Labels are 0..K-1 in the alphabetical order of the class folders, as in torchvision's ImageFolder, unless a class index
gives them. The labels of CIFAR-10's batches are those of its own files. The 1,000 labels of ImageNet are the sorted
WordNet ids, as in torchvision and timm.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from heads.images import UnreadableImage, decode_image, read_image
from resnet_backbone.errors import InvalidValue, MissingFile
from resnet_backbone.weights.pickled import read_arrays

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# zipfile raises RuntimeError for an encrypted member and for a compression that it does not support
DAMAGED_MEMBER = (OSError, SyntaxError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
CIFAR_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}


@dataclass(frozen=True)
class LabelledImage:
    """One image of a split.

    Attributes:
        image_id: index in the whole split.
        name: its path within the split, CLASS/FILE, or its name in a batch of CIFAR-10.
        label: 0..K-1.
    """

    image_id: int
    name: str
    label: int


class Reader(Protocol):
    """Reads the image of a record."""

    def __call__(self, record: LabelledImage) -> np.ndarray:
        """Read an image.

        Args:
            record: an image of the split.

        Returns:
            (H, W, 3) uint8, RGB.

        Raises:
            UnreadableImage: the image is missing or damaged; the message names it.
        """


@dataclass(frozen=True)
class LabelledData:
    """A split.

    Attributes:
        records: its images: ordered by class, then by name; those of CIFAR-10's batches in their own order.
        class_names: K names.
        read: reads the image of a record.
    """

    records: tuple[LabelledImage, ...]
    class_names: tuple[str, ...]
    read: Reader

    def wide(self) -> list[bool]:
        """All False: crops of classifiers have one size, whatever the image."""
        return [False] * len(self.records)

    def evenly_spaced(self, count: int | None) -> LabelledData:
        """Take evenly spaced images: in a split that is ordered by class, every class keeps its share.

        Args:
            count: number of images; None, or more than there are, takes all.

        Returns:
            The smaller split.
        """
        if count is None or count >= len(self.records):
            return self
        chosen = np.linspace(0, len(self.records) - 1, count).round().astype(int)
        return replace(self, records=tuple(self.records[i] for i in chosen))

    def kept_in_memory(self) -> LabelledData:
        """The same split; every image stays in memory once it has been decoded."""
        return replace(self, read=_CachingReader(self.read))

    def with_shuffled_labels(self, seed: int) -> LabelledData:
        """Permute the labels among the images, to check that a net cannot score above chance on them.

        Args:
            seed: random seed.

        Returns:
            The split with permuted labels.
        """
        labels = np.random.default_rng([seed, len(self.records)]).permutation([r.label for r in self.records])
        return replace(self, records=tuple(replace(r, label=int(n)) for r, n in zip(self.records, labels)))

    def summary(self) -> dict[str, Any]:
        """Counts for a table: "images" in total, and "classes" with the number of images of each."""
        counts = np.bincount([r.label for r in self.records], minlength=len(self.class_names))
        return {"images": len(self.records), "classes": dict(zip(self.class_names, counts.tolist()))}


def load_labelled(images: Path, part: str = "", class_index: Path | None = None) -> LabelledData:
    """Read the names and labels of a split.

    Args:
        images: folder with one folder per class, a zip of one, or the folder of CIFAR-10's python batches.
        part: folder within `images` that holds the class folders ("train", "test"); for CIFAR-10's batches "train" or
            "test".
        class_index: JSON file that maps class folders to labels; None numbers the class folders in alphabetical order.

    Returns:
        The split.

    Raises:
        MissingFile: there is no such folder or file.
        InvalidValue: there are no images, or labels and folders do not fit.
    """
    if not images.exists():
        raise MissingFile(f"no images at {images}: set data.train.images and data.val.images to an existing path")
    if images.is_dir() and (images / CIFAR_FILES["test"][0]).is_file():
        if class_index is not None:
            raise InvalidValue(f"{images} holds CIFAR-10's batches, which name their classes: leave class_index out")
        return _load_batches(images, part)
    names, read = _list_folder(images, part) if images.is_dir() else _list_zip(images, part)
    folders = sorted({name.split("/")[0] for name in names})
    if not folders:
        raise InvalidValue(
            f"no images in {images / part}: expected one folder per class with files named {', '.join(SUFFIXES)}"
        )
    label_of = {name: label for label, name in enumerate(folders)} if class_index is None else _read_index(class_index)
    if unlabelled := [name for name in folders if name not in label_of]:
        raise InvalidValue(
            f"{class_index} has no label for the folders {unlabelled[:5]} of {images / part}: add them to the class "
            "index, or remove the folders"
        )
    records = tuple(LabelledImage(i, name, label_of[name.split("/")[0]]) for i, name in enumerate(names))
    return LabelledData(records, tuple(sorted(label_of, key=label_of.__getitem__)), read)


def _list_folder(images: Path, part: str) -> tuple[list[str], Reader]:
    """The names CLASS/FILE of the images of a folder, and their reader."""
    root = images / part
    if not root.is_dir():
        raise MissingFile(f"no folder {part!r} in {images}: {_suggest_part(p.name for p in _folders(images))}")
    names = [
        f"{folder.name}/{path.name}"
        for folder in _folders(root)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    return names, _FolderReader(root)


def _list_zip(images: Path, part: str) -> tuple[list[str], Reader]:
    """The names CLASS/FILE of the images of a zip, and their reader."""
    if not zipfile.is_zipfile(images):
        raise InvalidValue(f"{images} is neither a folder nor a zip: extract it and give the folder")
    try:
        with zipfile.ZipFile(images) as archive:
            members = [PurePosixPath(name) for name in sorted(archive.namelist()) if name.lower().endswith(SUFFIXES)]
    except zipfile.BadZipFile as error:
        raise InvalidValue(f"{images} is not a whole zip ({error}): copy or download it again") from error
    in_part = [member.relative_to(part) for member in members if member.is_relative_to(part)]
    names = [str(name) for name in in_part if len(name.parts) == 2]
    if not names:
        suggestion = _suggest_part(member.parts[0] for member in members)
        raise MissingFile(f"no {part or '.'}/CLASS/IMAGE in {images}: {suggestion}")
    return names, _ZipReader(images, part)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _suggest_part(names: Iterable[str]) -> str:
    """End of a message: which folders there are."""
    folders = sorted(set(names))
    if not folders:
        return "it has no folders with images; expected one folder per class"
    return f"it has {', '.join(folders[:5])}{' ...' if len(folders) > 5 else ''}: set `part` to one of these"


def _read_index(path: Path) -> dict[str, int]:
    """A class index: class folder -> label."""
    if not path.is_file():
        raise MissingFile(f"no class index at {path}: set class_index to an existing JSON file, or leave it out")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(
            f'{path} is not JSON ({error}): write a mapping from class folders to labels, {{"ant": 0, "bee": 1}}'
        ) from error
    labels = list(index.values()) if isinstance(index, Mapping) else []
    integers = all(isinstance(label, int) and not isinstance(label, bool) for label in labels)
    if not labels or not integers or sorted(labels) != list(range(len(labels))):
        raise InvalidValue(
            f"{path} must map every class folder to an integer label of its own: 0, 1, 2, ... without gaps"
        )
    return dict(index)


@dataclass(frozen=True)
class _CachingReader:
    read: Reader
    images: dict[int, np.ndarray] = field(default_factory=dict)

    def __call__(self, record: LabelledImage) -> np.ndarray:
        if record.image_id not in self.images:
            self.images[record.image_id] = self.read(record)
        return self.images[record.image_id]


@dataclass(frozen=True)
class _FolderReader:
    root: Path

    def __call__(self, record: LabelledImage) -> np.ndarray:
        return read_image(self.root / record.name)


@dataclass
class _ZipReader:
    """Opens the zip once per process: processes that share a file handle also share its position."""

    path: Path
    part: str
    opened: tuple[int, zipfile.ZipFile] | None = None

    def __call__(self, record: LabelledImage) -> np.ndarray:
        if self.opened is None or self.opened[0] != os.getpid():
            self.opened = os.getpid(), zipfile.ZipFile(self.path)
        name = str(PurePosixPath(self.part) / record.name)
        try:
            data = self.opened[1].read(name)
        except (*DAMAGED_MEMBER, KeyError) as error:
            raise UnreadableImage(f"{name} in {self.path} cannot be read as an image ({error}): replace it") from error
        return decode_image(io.BytesIO(data), f"{name} in {self.path}")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "part": self.part, "opened": None}


@dataclass(frozen=True)
class _ArrayReader:
    pixels: np.ndarray  # (N, 32, 32, 3) uint8

    def __call__(self, record: LabelledImage) -> np.ndarray:
        return np.asarray(self.pixels[record.image_id])


def _load_batches(folder: Path, part: str) -> LabelledData:
    """The original files of CIFAR-10: rows of 1,024 red, 1,024 green and 1,024 blue values. No code is executed."""
    if part not in CIFAR_FILES:
        raise InvalidValue(f"{folder} holds CIFAR-10's batches: set `part` to train or test (got {part!r})")
    if missing := [name for name in (*CIFAR_FILES[part], "batches.meta") if not (folder / name).is_file()]:
        raise MissingFile(f"{folder} lacks {', '.join(missing)}: extract cifar-10-python.tar.gz again")
    names = tuple(_read_batch(folder / "batches.meta", "label_names")["label_names"])
    batches = [_read_batch(folder / name, "data", "labels", "filenames") for name in CIFAR_FILES[part]]
    rows = np.concatenate([_rows(batch["data"], folder) for batch in batches])
    labels = [int(label) for batch in batches for label in batch["labels"]]
    files = [str(name) for batch in batches for name in batch["filenames"]]
    if not 0 < len(rows) == len(labels) == len(files) or not 0 <= min(labels) <= max(labels) < len(names):
        raise InvalidValue(
            f"{folder}: {len(rows)} images, {len(labels)} labels, {len(files)} file names and {len(names)} classes do "
            "not fit together: extract cifar-10-python.tar.gz again"
        )
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    records = tuple(LabelledImage(i, name, label) for i, (name, label) in enumerate(zip(files, labels)))
    return LabelledData(records, names, _ArrayReader(pixels))


def _read_batch(path: Path, *keys: str) -> Mapping[str, Any]:
    """A file of CIFAR-10 that must have these keys."""
    batch = read_arrays(path)
    if not isinstance(batch, Mapping) or (missing := [key for key in keys if key not in batch]):
        lacks = f"lacks {', '.join(missing)}" if isinstance(batch, Mapping) else "holds no dict"
        raise InvalidValue(f"{path} {lacks}: it is no batch of CIFAR-10; extract cifar-10-python.tar.gz again")
    return batch


def _rows(data: object, folder: Path) -> np.ndarray:
    """Pixels of a batch: (N, 3072) uint8."""
    if not isinstance(data, Tensor) or data.ndim != 2 or data.shape[1] != 3072:
        actual = f"an array of shape {tuple(data.shape)}" if isinstance(data, Tensor) else f"a {type(data).__name__}"
        raise InvalidValue(
            f"{folder}: images must be rows of 3,072 values, got {actual}: extract cifar-10-python.tar.gz again"
        )
    return data.numpy()
