"""Pickles of arrays: those of NumPy and Python 2 are read, everything else is refused before it runs."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from resnet_backbone.weights.pickled import read_arrays

KINDS = [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.bool_]


@given(
    array=st.sampled_from(KINDS).flatmap(
        lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    protocol=st.integers(0, 5),
    fortran_order=st.booleans(),
)
def test_arrays_are_read_as_equal_tensors(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, protocol: int, fortran_order: bool
) -> None:
    path = tmp_path_factory.mktemp("pickles") / "arrays.pkl"
    array = np.asfortranarray(array) if fortran_order else array
    content = {"model": {"a": array}, "author": "somebody", "epoch": np.float64(3.5), "list": [array, (1, None)]}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = read_arrays(path)
    expected = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    for tensor in (loaded["model"]["a"], loaded["list"][0]):
        assert tensor.dtype == expected.dtype and tensor.shape == expected.shape
        assert torch.equal(tensor.isnan(), expected.isnan()) and torch.equal(tensor.nan_to_num(), expected.nan_to_num())
    assert loaded["author"] == "somebody" and loaded["epoch"] == 3.5 and loaded["list"][1] == (1, None)


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    """Python 2 stores strings and array data as byte strings, as in MSRA's files; written here opcode by opcode."""

    def text(value: bytes) -> bytes:  # BINSTRING
        return b"T" + struct.pack("<i", len(value)) + value

    raw = np.array([1.5, -2.0, 3e30], "<f4").tobytes()
    dtype = (
        b"cnumpy\ndtype\n("
        + text(b"f4")
        + b"K\x00K\x01tR(K\x03"
        + text(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    state = b"(K\x01(K\x03t" + dtype + b"\x89" + text(raw) + b"tb"
    program = b"\x80\x02}" + text(b"conv1_w") + array + state + b"s."
    expected = pickle.loads(program, encoding="latin1")["conv1_w"]  # the encoding that NumPy documents
    path = tmp_path / "R-50.pkl"
    path.write_bytes(program)
    assert torch.equal(read_arrays(path)["conv1_w"], torch.from_numpy(expected.copy()))


class Calls:
    """Unpickling an instance calls `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.mkdir, ("{created}",), "mkdir"),
        (eval, ("__import__('os').mkdir('{created}')",), "eval"),
        (np.load, ("{created}",), "load"),
        (getattr, (np.ndarray, "tofile"), "getattr"),
        (np.memmap, ("{created}",), "memmap"),
    ],
)
def test_pickle_that_would_call_a_function_is_refused_and_not_executed(
    function: Any, arguments: tuple[Any, ...], name: str, protocol: int, tmp_path: Path
) -> None:
    created = tmp_path / "created"
    formatted = [a.format(created=created) if isinstance(a, str) else a for a in arguments]
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Calls(function, *formatted)}}, protocol=protocol))
    with pytest.raises(
        ValueError, match=f"holds more than arrays and would run code when read .*{name}.*it was refused"
    ):
        read_arrays(path)
    assert not created.exists()


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.9, 0.999])
def test_error_names_a_truncated_pickle(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    complete = pickle.dumps({"conv1_w": np.ones((50, 7), np.float32)}, protocol=2)
    path.write_bytes(complete[: int(len(complete) * keep)])
    with pytest.raises(ValueError, match=r"R-50.pkl is not a whole pickle of arrays .*copy or download it again"):
        read_arrays(path)


def test_object_arrays_and_big_endian_arrays_are_refused(tmp_path: Path) -> None:
    for array in (np.array([{}, []], dtype=object), np.ones(3, ">f4")):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": array}, protocol=2))
        with pytest.raises(ValueError, match=r"a.pkl holds an array of type .*, which is not supported: save it"):
            read_arrays(tmp_path / "a.pkl")
