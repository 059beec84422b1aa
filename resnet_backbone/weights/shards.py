"""Weights in several files, with an index that tells which file holds which tensor.

transformers and accelerate write large models so: `model-00001-of-00003.safetensors` ... and
`model.safetensors.index.json`, or `pytorch_model-00001-of-00003.bin` ... and `pytorch_model.bin.index.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath

from torch import Tensor

from ..errors import InvalidValue, MissingFile

INDEX_SUFFIX = ".index.json"
_SHARD_NAME = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})(\.\w+)")


def is_index(path: Path) -> bool:
    """Whether a file is named as an index."""
    return path.name.endswith(INDEX_SUFFIX)


def check_is_whole(path: Path) -> None:
    """Refuse one of several shards, which alone lacks most tensors.

    Args:
        path: the file.

    Raises:
        InvalidValue: its name is that of a shard; the message names the index.
    """
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match[3]) < 2:
        return
    index = path.with_name(f"{match[1]}{match[4]}{INDEX_SUFFIX}")
    fix = (
        f"give {index} or its folder" if index.is_file() else f"its index {index.name} is not beside it: copy it there"
    )
    raise InvalidValue(f"{path} is one of {int(match[3])} files with the weights of a model: {fix}")


def read_shards(index: Path, read: Callable[[Path], object]) -> dict[str, Tensor]:
    """Read all files that an index names.

    Args:
        index: the index.
        read: reads one file, to a dict of tensors.

    Returns:
        The tensors of all files, in the order of the index.

    Raises:
        MissingFile: a file is missing.
        InvalidValue: the index is damaged, a file lacks a tensor that the index expects there, or holds another one.
    """
    places = _places(index)
    shards: dict[str, list[str]] = {}
    for key, name in places.items():
        shards.setdefault(name, []).append(key)
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise MissingFile(
            f"{index}: {len(missing)} of its {len(shards)} files are missing, first {missing[0]}: copy or download "
            f"them into {index.parent}"
        )
    tensors: dict[str, Tensor] = {}
    for name, keys in shards.items():
        content = read(index.parent / name)
        if not isinstance(content, Mapping):
            raise InvalidValue(f"{index.parent / name} holds a {type(content).__name__}, a shard is a dict of tensors")
        absent = [key for key in keys if not isinstance(content.get(key), Tensor)]
        unlisted = [str(key) for key in content if places.get(str(key)) != name]
        for what, found in (("lacks", absent), ("holds", unlisted)):
            if found:
                listed = "which the index expects there" if what == "lacks" else "which the index does not list there"
                raise InvalidValue(
                    f"{index.parent / name} {what} {found[0]}, {listed} ({len(found)} such tensors): the files belong "
                    "to different models, or one is damaged; copy or download all of them again"
                )
        tensors |= {key: content[key] for key in keys}
    return {key: tensors[key] for key in places}


def _places(index: Path) -> dict[str, str]:
    """Key -> the name of the file that holds its tensor."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{index} is not a whole JSON file ({error}): copy or download it again") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise InvalidValue(f"{index} has no weight_map of keys and file names, so it is no index of shards")
    for key, name in places.items():
        if name in ("", ".", "..") or PureWindowsPath(name).name != name:  # both separators, and drives
            raise InvalidValue(f"{index}: {key} is in {name!r}, which is not the name of a file beside the index")
    return places
