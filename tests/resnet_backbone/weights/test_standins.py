"""Values that programs pickle beside weights are read as plain values; every other name is refused unexecuted."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from resnet_backbone.weights.read import read_file
from resnet_backbone.weights.standins import safe_globals

VALUES = st.one_of(
    st.integers(-5, 5).map(np.int64),
    st.floats(allow_nan=False).map(np.float64),
    st.booleans().map(np.bool_),
    st.floats(allow_nan=False, width=32).map(np.float32),
    st.text(max_size=5).map(lambda text: pathlib.PurePosixPath("/runs") / text.replace("\0", "")),
    st.datetimes(),
    st.dates(),
    st.timedeltas(),
    st.sets(st.integers(0, 9), max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(options=st.dictionaries(st.sampled_from("abcdef"), VALUES, max_size=4), legacy=st.booleans())
def test_plain_values_beside_weights_keep_their_values(
    options: dict[str, Any], legacy: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("values") / "last.pth"
    content = {"model": {"weight": torch.ones(2)}, "args": argparse.Namespace(**options), "values": options}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded: Any = read_file(path)
    assert torch.equal(loaded["model"]["weight"], torch.ones(2))
    assert loaded["values"] == options and vars(loaded["args"]) == options


@given(array=arrays.arrays(st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]), arrays.array_shapes()))
def test_arrays_in_torch_files_become_tensors(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("arrays") / "last.pth"
    torch.save({"model": {"a": array}, "rng": np.random.default_rng(0).integers(9, size=3, dtype=np.uint32)}, path)
    loaded: Any = read_file(path)
    torch.testing.assert_close(loaded["model"]["a"], torch.from_numpy(array), rtol=0, atol=0, equal_nan=True)
    assert loaded["rng"].dtype == torch.uint32


def test_what_trainers_save_is_read(tmp_path: Path) -> None:
    content = {
        "state_dict": collections.OrderedDict(weight=torch.ones(2)),
        "counts": collections.defaultdict(list, a=[1]),
        "nested": types.SimpleNamespace(path=Path("/data"), when=datetime.datetime.now(datetime.timezone.utc)),
        "torch": torch.__version__,
        "numpy_rng": np.random.get_state(),
        "torch_rng": torch.get_rng_state(),
        "precision": np.dtype("float32"),
        "kind": np.float64,
    }
    torch.save(content, tmp_path / "last.ckpt")
    loaded: Any = read_file(tmp_path / "last.ckpt")
    assert loaded["counts"] == {"a": [1]} and loaded["torch"] == str(torch.__version__)
    assert loaded["nested"].path == pathlib.PurePosixPath("/data")


def test_dicts_and_histories_of_packages_are_read_without_importing_them(tmp_path: Path) -> None:
    """The classes have the names of addict's and mmengine's, and must not be imported again when they are read."""

    class Dict(dict):  # type: ignore[type-arg]
        pass

    class HistoryBuffer:
        def __init__(self) -> None:
            self._history = np.ones(3)

    names = {Dict: "addict.addict", HistoryBuffer: "mmengine.logging.history_buffer"}
    made = {name: types.ModuleType(name) for name in names.values()}
    for kind, module in names.items():
        kind.__module__, kind.__qualname__ = module, kind.__name__
        setattr(made[module], kind.__name__, kind)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        torch.save({"state_dict": {"w": torch.ones(1)}, "cfg": Dict(a=Dict(b=1)), "log": HistoryBuffer()},
                   tmp_path / "epoch_1.pth")  # fmt: skip
    finally:
        for name, module in before.items():  # type: ignore[assignment]
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    loaded: Any = read_file(tmp_path / "epoch_1.pth")
    assert loaded["cfg"] == {"a": {"b": 1}}


class Calls:
    """Unpickling an instance calls `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".legacy.pth"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.mkdir, "mkdir"),
        (os.system, "system"),
        (eval, "eval"),
        (exec, "exec"),
        (getattr, "getattr"),
        (open, "open"),
        (subprocess.Popen, "Popen"),
        (pathlib.Path.mkdir, "getattr|Path.mkdir"),
        (np.load, "load"),
        (np.memmap, "numpy.*memmap"),
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
    ],
)
def test_every_other_name_is_refused_by_name_and_not_called(
    function: Any, name: str, suffix: str, tmp_path: Path
) -> None:
    created = tmp_path / "created"
    content = {"model": {"weight": torch.ones(2)}, "extra": Calls(function, str(created))}
    path = tmp_path / f"evil{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"extra": content["extra"]}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix == ".pth")
    with pytest.raises(ValueError, match=rf"would run code when read \(.*({name})\): it was refused"):
        read_file(path)
    assert not created.exists()


def test_the_safe_names_are_safe_only_while_a_file_is_read(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=0.1)}, tmp_path / "last.pth")
    before = set(torch.serialization.get_safe_globals())  # torch gives them in any order
    read_file(tmp_path / "last.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.pth", weights_only=True)


def test_no_safe_name_opens_files_imports_or_evaluates() -> None:
    """All stand for classes and functions of the standard library's plain values, or of this package."""
    modules = {"builtins", "argparse", "types", "datetime", "pathlib", "pathlib._local", "collections"}
    builtins = {"bool", "dict", "float", "frozenset", "int", "list", "slice", "str", "tuple"}
    for entry in safe_globals():
        assert isinstance(entry, tuple)
        standin, name = entry
        home = standin.__module__
        assert home in modules or home.startswith("resnet_backbone.weights."), name
        assert home != "builtins" or standin.__name__ in builtins, name
