"""Images with one label each: folders of one folder a class, a zip of them, or CIFAR-10's python batches.

A label is the place of its class's name in alphabetical order (of CIFAR-10's batches, in their own), unless a class
index says otherwise: ImageNet's 1,000 labels are so the sorted WordNet ids, as in torchvision and timm.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from heads.images import UnreadableImage, read_image, upright_rgb
from resnet_backbone.errors import InvalidValue, MissingFile
from resnet_backbone.weights.pickled import read_arrays

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
CIFAR_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}


@dataclass(frozen=True)
class LabelledImage:
    """name: its path, its member of a zip, or its name in a batch."""

    image_id: int
    name: str
    label: int


class Reader(Protocol):
    def __call__(self, record: LabelledImage) -> np.ndarray:
        """-> (H, W, 3) uint8 RGB. Raises `UnreadableImage`."""


@dataclass(frozen=True)
class LabelledData:
    """A split, in the order of its names; `read` gives a record's image."""

    records: tuple[LabelledImage, ...]
    class_names: tuple[str, ...]
    read: Reader

    def spread(self, count: int | None) -> LabelledData:
        """So many of the images, evenly spaced: of a split in the order of its classes, the same share of each."""
        if count is None or count >= len(self.records):
            return self
        chosen = np.linspace(0, len(self.records) - 1, count).round().astype(int)
        return replace(self, records=tuple(self.records[i] for i in chosen))

    def kept_in_memory(self) -> LabelledData:
        """The same, with every image kept once it is decoded."""
        return replace(self, read=_Kept(self.read))

    def shuffled(self, seed: int) -> LabelledData:
        """The same images and the same labels, dealt out at random."""
        labels = np.random.default_rng([seed, len(self.records)]).permutation([r.label for r in self.records])
        return replace(self, records=tuple(replace(r, label=int(n)) for r, n in zip(self.records, labels)))

    def summary(self) -> dict[str, Any]:
        """Counts for people, before training."""
        counts = np.bincount([r.label for r in self.records], minlength=len(self.class_names))
        return {"images": len(self.records), "classes": dict(zip(self.class_names, counts.tolist()))}


def load_labelled(images: Path, part: str = "", class_index: Path | None = None) -> LabelledData:
    """A split. Raises FileNotFoundError, or ValueError where the folders are not as wanted."""
    if not images.exists():
        raise MissingFile(f"no images at {images}: check data.*.images")
    if images.is_dir() and (images / CIFAR_FILES["test"][0]).is_file():
        if class_index is not None:
            raise InvalidValue(f"{images} are CIFAR-10's batches, which name their classes: leave class_index out")
        return _load_batches(images, part)
    read: Reader
    if images.is_dir():
        root = images / part
        if not root.is_dir():
            raise MissingFile(f"no folder {part!r} in {images}: {_names_in(p.name for p in _folders(images))}")
        names = [
            f"{folder.name}/{path.name}"
            for folder in _folders(root)
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        read = _Folder(root)
    elif zipfile.is_zipfile(images):
        with zipfile.ZipFile(images) as archive:
            members = [PurePosixPath(name) for name in sorted(archive.namelist()) if name.lower().endswith(SUFFIXES)]
        inside = [m.relative_to(part) for m in members if m.is_relative_to(part)]
        names = [str(name) for name in inside if len(name.parts) == 2]
        if not names:
            has = _names_in(member.parts[0] for member in members)
            raise MissingFile(f"no {part or '.'}/CLASS/IMAGE in {images}: {has}")
        read = _Zip(images, part)
    else:
        raise InvalidValue(f"{images} is neither a folder nor a zip: unpack it, or name the folder that it became")
    found = sorted({name.split("/")[0] for name in names})
    if not found:
        raise InvalidValue(f"no images in {images / part}: one folder a class is wanted, with {', '.join(SUFFIXES)}")
    label_of = {name: label for label, name in enumerate(found)} if class_index is None else _read_index(class_index)
    if strangers := [name for name in found if name not in label_of]:
        raise InvalidValue(f"{class_index} has no label for the folders {strangers[:5]} of {images / part}: add them")
    records = tuple(LabelledImage(i, name, label_of[name.split("/")[0]]) for i, name in enumerate(names))
    return LabelledData(records, tuple(sorted(label_of, key=label_of.__getitem__)), read)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _names_in(names: Any) -> str:
    found = sorted(set(names))
    return f"it has {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}: set `part`" if found else "it is empty"


def _read_index(path: Path) -> dict[str, int]:
    if not path.is_file():
        raise MissingFile(f"no class index at {path}: check data.*.class_index")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InvalidValue(f"{path} is not JSON ({error}): it maps every folder's name to its label") from error
    if not isinstance(index, Mapping) or sorted(index.values()) != list(range(len(index))):
        raise InvalidValue(f"{path} must map every class's folder to a label of its own, 0, 1, 2, ... without gaps")
    return dict(index)


@dataclass(frozen=True)
class _Kept:
    read: Reader
    images: dict[int, np.ndarray] = field(default_factory=dict)

    def __call__(self, record: LabelledImage) -> np.ndarray:
        if record.image_id not in self.images:
            self.images[record.image_id] = self.read(record)
        return self.images[record.image_id]


@dataclass(frozen=True)
class _Folder:
    root: Path

    def __call__(self, record: LabelledImage) -> np.ndarray:
        return read_image(self.root / record.name)


@dataclass
class _Zip:
    """Opened anew in every loader process: they would move one handle under each other's feet."""

    path: Path
    part: str
    opened: tuple[int, zipfile.ZipFile] | None = None

    def __call__(self, record: LabelledImage) -> np.ndarray:
        from PIL import Image

        if self.opened is None or self.opened[0] != os.getpid():
            self.opened = os.getpid(), zipfile.ZipFile(self.path)
        name = str(PurePosixPath(self.part) / record.name)
        try:
            with Image.open(io.BytesIO(self.opened[1].read(name))) as image:
                return upright_rgb(image)
        except (OSError, SyntaxError, ValueError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
            raise UnreadableImage(f"{name} in {self.path} cannot be read as an image ({error}): replace it") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "part": self.part, "opened": None}


@dataclass(frozen=True)
class _Arrays:
    pixels: np.ndarray  # (N, 32, 32, 3) uint8

    def __call__(self, record: LabelledImage) -> np.ndarray:
        return np.asarray(self.pixels[record.image_id])


def _load_batches(folder: Path, part: str) -> LabelledData:
    """Alex Krizhevsky's own files: rows of 1,024 red, 1,024 green and 1,024 blue values, nothing executed."""
    if part not in CIFAR_FILES:
        raise InvalidValue(f"{folder} are CIFAR-10's batches: set `part` to train or test (got {part!r})")
    if missing := [name for name in (*CIFAR_FILES[part], "batches.meta") if not (folder / name).is_file()]:
        raise MissingFile(f"{folder} lacks {', '.join(missing)}: unpack cifar-10-python.tar.gz again")
    names = tuple(read_arrays(folder / "batches.meta")["label_names"])
    batches = [read_arrays(folder / name) for name in CIFAR_FILES[part]]
    rows = np.concatenate([_rows(batch["data"], folder) for batch in batches])
    labels = [int(label) for batch in batches for label in batch["labels"]]
    files = [str(name) for batch in batches for name in batch["filenames"]]
    if not len(rows) == len(labels) == len(files) or not 0 <= min(labels) <= max(labels) < len(names):
        raise InvalidValue(f"{folder}: {len(rows)} images, {len(labels)} labels and {len(files)} names do not fit")
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    records = tuple(LabelledImage(i, name, label) for i, (name, label) in enumerate(zip(files, labels)))
    return LabelledData(records, names, _Arrays(pixels))


def _rows(data: Tensor, folder: Path) -> np.ndarray:
    if data.ndim != 2 or data.shape[1] != 3072:
        raise InvalidValue(f"{folder}: images are rows of 3,072 values, these are {tuple(data.shape)}")
    return data.numpy()
