"""Pickles that hold arrays and nothing else: MSRA's and detectron2's `.pkl` files.

A pickle is a program. The one that is run here may build arrays, lists, dicts, numbers and strings; any other name in
it is refused before it is looked up. Arrays become tensors without NumPy's help.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidValue

_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


class _Dtype:
    """Stands for numpy.dtype: its code, and the byte order that its state brings."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code.lstrip("<|=>"), code[0] if code[0] in "<|=>" else "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def tensor(self, raw: Any, shape: tuple[int, ...], *, by_columns: bool) -> Tensor:
        if self.code not in _DTYPES or self.order == ">":
            raise pickle.UnpicklingError(f"an array of type {self.order}{self.code}")
        data = bytearray(raw.encode("latin1") if isinstance(raw, str) else raw)  # str: Python 2 wrote it
        flat = torch.frombuffer(data, dtype=_DTYPES[self.code]) if data else torch.empty(0, dtype=_DTYPES[self.code])
        if by_columns:
            return flat.reshape(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
        return flat.reshape(shape)


class _Array:
    """Stands for numpy.ndarray until its state has come."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, raw = state
        self.tensor = dtype.tensor(raw, shape, by_columns=by_columns)


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Tensor:
    return dtype.tensor(raw, shape, by_columns=order == "F")


def _no_bytes() -> bytes:
    return b""


def _names() -> dict[tuple[str, str], Callable[..., Any]]:
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }
    for builtins in ("builtins", "__builtin__"):  # how older protocols write no bytes at all
        names[builtins, "bytes"] = _no_bytes
    for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        names[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
        names[f"{core}.multiarray", "scalar"] = lambda dtype, raw: dtype.tensor(raw, (), by_columns=False).item()
        names[f"{core}.numeric", "_frombuffer"] = _from_buffer
    return names


class _Arrays(pickle.Unpickler):
    known = _names()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise RefusedPickle(f"{module}.{name}")
        return self.known[module, name]


class RefusedPickle(pickle.UnpicklingError):
    """The pickle wants something that is no array; the message names it."""


def read_arrays(path: Path) -> Any:
    """What the file holds, arrays as tensors. Raises ValueError for a pickle that wants more, or a damaged one."""
    try:
        with open(path, "rb") as file:
            return _as_tensors(_Arrays(file, encoding="latin1").load())
    except RefusedPickle as refused:
        raise InvalidValue(
            f"{path} holds more than arrays and would run code when read ({refused}): it was refused. Where it comes "
            "from, save its state dict alone (torch.save(model.state_dict(), ...) or safetensors)"
        ) from refused
    except PermissionError:
        raise
    except Exception as error:  # of a damaged pickle the unpickler raises whatever it stumbles over
        raise InvalidValue(
            f"{path} is not a whole pickle of arrays ({type(error).__name__} {error}): copy or download it again"
        ) from error


def _as_tensors(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.tensor
    if isinstance(value, dict):
        return {key: _as_tensors(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_as_tensors(part) for part in value)
    return value
