"""Reading and writing weight files. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import CannotWrite, InvalidValue, MissingFile
from .catalog import PUBLISHED, check_hash, published_file
from .certificate import FORMAT, METADATA, CertificateMismatch
from .formats import NAMES, by_suffix, format_of
from .pickled import UnsupportedArray, as_tensors, read_arrays, unsupported
from .shards import check_is_whole, is_index, read_shards
from .standins import safe_globals
from .unwrap import common_prefixes, unwrap

DESCRIPTION = ("source", "project", "net", "preprocess")
PROOF = ("tensors", "fingerprint")


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
        state: the tensors, under the file's own keys.
        content: everything that the file holds.
        path: where it was read from; None for a state dict that was passed directly.
        meta: for a file of this project, its metadata (see `certificate`); None for any other file.
        prefix: what was removed from every key ("module.model.").
        notes: what was chosen while it was read, one sentence each: the entry of the state dict, averaged weights.
    """

    state: dict[str, Tensor]
    content: object
    path: Path | None = None
    meta: Mapping[str, Any] | None = None
    prefix: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "the given weights" if self.path is None else str(self.path)

    def spellings(self) -> list[tuple[str, dict[str, Tensor]]]:
        """Every way to read the keys: (what is removed from all of them, the tensors), nothing removed first.

        A net that was saved inside another module has a prefix before every key; a module that has these names itself
        needs it.
        """
        if self.meta is not None:
            return [("", self.state)]
        whole = {self.prefix + key: value for key, value in self.state.items()}
        names = common_prefixes(whole)
        removed = ["".join(names[:count]) for count in range(len(names) + 1)]
        return [(prefix, {key.removeprefix(prefix): value for key, value in whole.items()}) for prefix in removed]

    @property
    def certified(self) -> bool:
        """Whether the file carries a certificate. The checkpoints of a run describe themselves without one."""
        return self.meta is not None and set(PROOF) <= set(self.meta)


Weights = str | PathLike[str] | Mapping[str, Tensor] | WeightFile


def read_weights(weights: Weights, *, net: str | None = None, part: str | None = None) -> WeightFile:
    """Read a weight file, a published file or a state dict.

    Args:
        weights: the path of a `.safetensors`, torch or `.pkl` file or of the index of a sharded model, a published name
            ("imagenet1k_v1"), or a state dict. How a file is read depends on its content, not on its name.
        net: the net for which a published name is read ("resnet50").
        part: the entry of the file that holds the weights, such as "state_dict"; None finds it, and takes averaged
            weights (EMA) where there are any.

    Returns:
        The content. A `WeightFile` is returned as it is, or with another `part`.

    Raises:
        MissingFile: there is no such file.
        DownloadFailed: a published file is not in the cache and cannot be downloaded.
        InvalidValue: the file is damaged, is no weight file, was written by a newer version, or would execute code when
            read; or it holds several state dicts.
        CertificateMismatch: the file has lost a part of its certificate.
    """
    path, notes = None, ""
    if isinstance(weights, WeightFile):
        if part is None:
            return weights
        path, content = weights.path, weights.content
    elif isinstance(weights, Mapping):
        content = weights
    elif str(weights) in PUBLISHED:
        path = published_file(str(weights), net or "a net without a published file")
        content = read_file(path)
    else:
        path = Path(weights)
        if not path.is_file():
            names = ", ".join(PUBLISHED)
            raise MissingFile(f"no weights at {path}: give the path of a file, or one of the names {names}")
        check_hash(path)
        content, notes = _read(path)
    meta = _metadata(content, path)
    try:
        found = unwrap(content, part=part, keep_keys=meta is not None)
    except InvalidValue as error:
        raise error if path is None else InvalidValue(f"{path}: {error}") from error
    said = () if meta is not None and part is None else found.notes  # a file of this project has one layout
    return WeightFile(found.state, content, path, meta, found.prefix, (*([notes] if notes else []), *said))


def _metadata(content: object, path: Path | None) -> Mapping[str, Any] | None:
    """The metadata of a file of this project; None for any other file."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not (isinstance(meta, Mapping) and {"format", "kind"} <= set(meta)):
        return None
    if meta["format"] > FORMAT:
        raise InvalidValue(f"{path} was written by a newer version (format {meta['format']}): update resnet-backbone")
    required = {*DESCRIPTION, *(PROOF if set(PROOF) & set(meta) else ())}
    if lost := required - set(meta):
        raise CertificateMismatch(f"{path}: its certificate has lost {', '.join(sorted(lost))}: make the file again")
    return meta


def read_file(path: Path) -> object:
    """Read the content of a `.safetensors`, `.pkl` or torch file, or of a sharded model.

    Args:
        path: the file, or the index of a sharded model; its content determines the format.

    Returns:
        What the file holds. For a `.safetensors` file of this project {"model": tensors, "meta": metadata}.

    Raises:
        MissingFile: a shard is missing.
        InvalidValue: the file is damaged, is no weight file, or would execute code when read.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[object, str]:
    """The content of a file, and a note if its name promises another format or it has several parts."""
    if is_index(path):
        shards = read_shards(path, _read_shard)
        return shards, f"{len(shards)} tensors joined from the files that {path.name} lists"
    check_is_whole(path)
    return _read_one(path)


def _read_shard(path: Path) -> object:
    return _read_one(path)[0]


def _read_one(path: Path) -> tuple[object, str]:
    kind, promised = format_of(path), by_suffix(path)
    note = "" if kind == promised else f"read as a {NAMES[kind]}, although its name is that of a {NAMES[promised]}"
    if kind == "pickle":
        return read_arrays(path), note
    return (_read_safetensors(path) if kind == "safetensors" else _read_torch(path)), note


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
            header = (file.metadata() or {}).get(METADATA)
        return state if header is None else {"model": state, "meta": json.loads(header)}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InvalidValue(f"{path} is not a whole safetensors file ({error}): copy or download it again") from error


def _read_torch(path: Path) -> object:
    try:
        # an open file: torch tells the format of a path from its name
        with open(path, "rb") as file, torch.serialization.safe_globals(safe_globals()):
            return as_tensors(torch.load(file, map_location="cpu", weights_only=True))
    except PermissionError:
        raise
    except UnsupportedArray as error:
        raise InvalidValue(unsupported(path, error)) from error
    except Exception as error:  # torch's unpickler raises any type for a damaged file, with any message
        if refused := _refused_name(error):
            raise InvalidValue(
                f"{path} holds more than tensors and would run code when read ({refused}): it was refused. Save its "
                "state dict alone, in the program that wrote it (torch.save(model.state_dict(), ...) or safetensors)"
            ) from error
        cause = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__} {error}"
        raise InvalidValue(f"{path} is not a whole torch file ({cause[:100]}): copy or download it again") from error


def _refused_name(error: Exception) -> str | None:
    """What torch's safe unpickler refused to call; None if the file is damaged."""
    if match := re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error)):
        return match[1]
    if match := re.search(r"``(torch\.[\w.]+)``.* must be imported to load", str(error)):
        return f"{match[1]}, sharded tensors"
    return None


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a file so that `path` is a whole file at any moment, the old one or the new one.

    The content is written beside `path`, flushed to the disk and renamed. If that fails, nothing is left beside it.

    Args:
        content: what to write. A `.safetensors` file takes the tensors under "model" and the metadata under "meta", as
            JSON in its header; a torch file takes everything.
        path: the file to write.

    Raises:
        CannotWrite: the disk is full or read-only, or `path` cannot be written for another reason of the file system.
            An earlier file at `path` is unchanged.
    """
    draft = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(draft, "wb") as file:
            _write(content, file, path.suffix)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        if (reason := _system_error(error)) is None:
            raise
        kept = "the file from before is unchanged" if path.is_file() else "nothing was written"
        raise CannotWrite(
            f"{path} cannot be written ({reason.strerror or reason}), {kept}: free space on its disk, make its folder "
            "writable, or write to another folder"
        ) from error


def _write(content: Mapping[str, Any], file: IO[bytes], suffix: str) -> None:
    """Write the content as safetensors or as torch does, by the suffix of the file."""
    if suffix != ".safetensors":
        torch.save(dict(content), file)
        return
    from safetensors.torch import save

    tensors = {key: value.contiguous() for key, value in content["model"].items()}
    file.write(save(tensors, {METADATA: json.dumps(content["meta"])} if "meta" in content else None))


def _system_error(error: BaseException) -> OSError | None:
    """The error of the file system that another one came from: torch raises RuntimeError when a write fails."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = (found.__cause__ or found.__context__) if isinstance(found, Exception) else None
    return found
