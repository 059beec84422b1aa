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
from .pickled import read_arrays

# where trainers put the state dict: this project and detectron2 "model", most others "state_dict", Caffe2 "blobs"
WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")
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
    """

    state: dict[str, Tensor]
    content: object
    path: Path | None = None
    meta: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return "the given weights" if self.path is None else str(self.path)

    @property
    def certified(self) -> bool:
        """Whether the file carries a certificate. The checkpoints of a run describe themselves without one."""
        return self.meta is not None and set(PROOF) <= set(self.meta)


Weights = str | PathLike[str] | Mapping[str, Tensor] | WeightFile


def read_weights(weights: Weights, *, net: str | None = None) -> WeightFile:
    """Read a weight file, a published file or a state dict.

    Args:
        weights: the path of a `.safetensors`, torch or `.pkl` file, a published name ("imagenet1k_v1"), or a state
            dict.
        net: the net for which a published name is read ("resnet50").

    Returns:
        The content. A `WeightFile` is returned as it is.

    Raises:
        MissingFile: there is no such file.
        DownloadFailed: a published file is not in the cache and cannot be downloaded.
        InvalidValue: the file is damaged, was written by a newer version, or would execute code when read.
        CertificateMismatch: the file has lost a part of its certificate.
    """
    if isinstance(weights, WeightFile):
        return weights
    path = None
    if isinstance(weights, Mapping):
        content: object = weights
    elif str(weights) in PUBLISHED:
        path = published_file(str(weights), net or "a net without a published file")
        content = read_file(path)
    else:
        path = Path(weights)
        if not path.is_file():
            names = ", ".join(PUBLISHED)
            raise MissingFile(f"no weights at {path}: give the path of a file, or one of the names {names}")
        check_hash(path)
        content = read_file(path)
    return WeightFile(unwrap(content), content, path, _metadata(content, path))


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


def unwrap(content: object) -> dict[str, Tensor]:
    """Find the state dict in a loaded file.

    Args:
        content: the state dict itself, or a dict that holds it under one of `WRAPPERS`. The prefix `module.` of
            DistributedDataParallel is removed.

    Returns:
        Key -> tensor.

    Raises:
        InvalidValue: there is no state dict.
    """
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return unwrap(content[key])
        state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if state and len(state) == len(content):
            if all(key.startswith("module.") for key in state):
                return {key.removeprefix("module."): value for key, value in state.items()}
            return state
        holds = ", ".join(map(str, list(content)[:5])) or "nothing"
    else:
        holds = type(content).__name__
    raise InvalidValue(f"no state dict in this file (it holds {holds}): it must be one, or hold one under {WRAPPERS}")


def read_file(path: Path) -> object:
    """Read the content of a `.safetensors`, `.pkl` or torch file.

    Args:
        path: the file; its suffix determines the format.

    Returns:
        What the file holds. For a `.safetensors` file of this project {"model": tensors, "meta": metadata}.

    Raises:
        InvalidValue: the file is damaged or would execute code when read.
    """
    if path.suffix == ".pkl":
        return read_arrays(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


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
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # torch's unpickler raises any type for a damaged file, with any message
        if refused := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise InvalidValue(
                f"{path} holds more than tensors and would run code when read ({refused[1]}): it was refused. Save its "
                "state dict alone (torch.save(model.state_dict(), ...) or safetensors)"
            ) from error
        cause = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__} {error}"
        raise InvalidValue(f"{path} is not a whole torch file ({cause[:100]}): copy or download it again") from error


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
