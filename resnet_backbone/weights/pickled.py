"""Pickles that hold arrays only: MSRA's and detectron2's `.pkl` files.

A pickle is a program that may call any function. The unpickler here builds arrays, lists, dicts, numbers and strings;
any other name is refused before it is imported. Arrays become tensors without NumPy.
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
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64,
    "b1": torch.bool,
}  # fmt: skip


class RefusedPickle(pickle.UnpicklingError):
    """The pickle calls something that makes no array; the message is its name."""


class UnsupportedArray(pickle.UnpicklingError):
    """The pickle holds an array that has no counterpart in torch; the message is its type."""


class _Dtype:
    """Stands for numpy.dtype: its type code, and the byte order that its state brings."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code.lstrip("<|=>"), code[0] if code[0] in "<|=>" else "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def tensor(self, raw: Any, shape: tuple[int, ...], *, by_columns: bool) -> Tensor:
        if self.code not in _DTYPES or self.order == ">":
            raise UnsupportedArray(f"{self.order}{self.code}")
        data = bytearray(raw.encode("latin1") if isinstance(raw, str) else raw)  # str: written by Python 2
        flat = torch.frombuffer(data, dtype=_DTYPES[self.code]) if data else torch.empty(0, dtype=_DTYPES[self.code])
        if by_columns:
            return flat.reshape(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
        return flat.reshape(shape)


class _Array:
    """Stands for numpy.ndarray; the state of the pickle sets `tensor`."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, raw = state
        self.tensor = dtype.tensor(raw, shape, by_columns=by_columns)


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Tensor:
    return dtype.tensor(raw, shape, by_columns=order == "F")


def _no_bytes() -> bytes:
    return b""


def array_names() -> dict[tuple[str, str], Callable[..., Any]]:
    """The names of which arrays are made: (module, name) -> what is called in its place."""
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }
    for builtins in ("builtins", "__builtin__"):  # older protocols write empty bytes as a call without arguments
        names[builtins, "bytes"] = _no_bytes
    for core in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
        names[f"{core}.multiarray", "_reconstruct"] = lambda *_: _Array()
        names[f"{core}.multiarray", "scalar"] = lambda dtype, raw: dtype.tensor(raw, (), by_columns=False).item()
        names[f"{core}.numeric", "_frombuffer"] = _from_buffer
    return names


class _Arrays(pickle.Unpickler):
    allowed = array_names()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise RefusedPickle(f"{module}.{name}")
        return self.allowed[module, name]


def read_arrays(path: Path) -> Any:
    """Read a pickle of arrays.

    Args:
        path: the file.

    Returns:
        Its content, with tensors in place of arrays.

    Raises:
        InvalidValue: the pickle is damaged, holds arrays that torch does not have, or would execute code when read.
    """
    try:
        with open(path, "rb") as file:
            return as_tensors(_Arrays(file, encoding="latin1").load())
    except RefusedPickle as error:
        raise InvalidValue(
            f"{path} holds more than arrays and would run code when read ({error}): it was refused. In the program "
            "that wrote it, save the state dict alone (torch.save(model.state_dict(), ...) or safetensors)"
        ) from error
    except UnsupportedArray as error:
        raise InvalidValue(unsupported(path, error)) from error
    except PermissionError:
        raise
    except Exception as error:  # the unpickler raises many kinds of exception for damaged files
        raise InvalidValue(
            f"{path} is not a whole pickle of arrays ({type(error).__name__} {error}): copy or download it again"
        ) from error


def unsupported(path: Path, error: UnsupportedArray) -> str:
    """The message for an array that torch does not have."""
    return (
        f"{path} holds an array of type {error}, which is not supported: save it again with numbers in native byte "
        f"order ({', '.join(_DTYPES)})"
    )


def as_tensors(value: Any) -> Any:
    """Replace what stands for arrays in an unpickled value, also in its dicts, lists and tuples, by tensors."""
    if isinstance(value, _Array):
        return value.tensor
    if type(value) in (dict, OrderedDict):
        return {key: as_tensors(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(as_tensors(part) for part in value)
    return value
