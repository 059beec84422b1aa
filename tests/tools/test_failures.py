"""Errors of the system and of torch, as errors that say what to do; a full disk and the last checkpoint."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_backbone.errors import CannotWrite, InvalidValue, UserError
from resnet_backbone.weights.read import read_file, save_atomically
from tests.tools.conftest import Said
from tools.failures import FIXES, OutOfMemory, ProcessLost, SystemFailure, during, explain, explained, system_error
from tools.files import write_text

Call = Callable[..., Said]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk on which files cannot grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("number", sorted(FIXES))
def test_an_error_of_the_system_names_the_file_and_the_way_out(number: int, call: Call) -> None:
    def main() -> int:
        raise OSError(number, os.strerror(number), "/data/photo.jpg")

    printed = call(SimpleNamespace(__name__="command", main=main))
    assert printed.code == 2 and printed.err.count("\n") == 1
    assert printed.err.startswith(f"error: /data/photo.jpg: {os.strerror(number)}: ")
    debug = call(SimpleNamespace(__name__="command", main=main), "--debug")
    assert debug.code == 2 and debug.err.startswith("Traceback") and debug.err.endswith(printed.err)


@pytest.mark.parametrize(
    ("error", "kind", "fix"),
    [
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), ProcessLost, "data.workers"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), ProcessLost, "data.workers"),
        (
            RuntimeError(
                "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            ProcessLost,
            "--shm-size",
        ),
        (
            RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
            ProcessLost,
            "data.workers to 0",
        ),
        (RuntimeError("Too many open files. Communication with the workers is"), SystemFailure, "ulimit -n"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            OutOfMemory,
            "",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory, "train.accumulate"),
        (MemoryError(), OutOfMemory, "data.workers"),
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"),
            ProcessLost,
            "its message says why",
        ),
    ],
)
def test_what_torch_reports_in_the_text_of_an_error_is_told_apart(
    error: Exception, kind: type[UserError], fix: str
) -> None:
    with pytest.raises(kind) as raised, explained():
        raise error
    assert fix in str(raised.value) and raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), KeyError("x"), OSError("no errno"), TypeError()]
)
def test_a_bug_stays_a_bug(error: Exception) -> None:
    assert explain(error) is None
    with pytest.raises(type(error)), explained():
        raise error


def test_what_was_being_done_begins_the_message_of_too_little_memory_and_not_of_a_bug() -> None:
    message = r"^detecting objects in a.jpg \(9x9\): there is not enough memory"
    with pytest.raises(OutOfMemory, match=message), during("detecting objects in a.jpg (9x9)"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(ValueError, match="^mine$"), during("detecting objects"):
        raise ValueError("mine")


def test_the_first_error_of_the_system_among_the_causes_is_found() -> None:
    inner = OSError(errno.EMFILE, "Too many open files")
    outer = InvalidValue("cannot be read")
    outer.__cause__ = inner
    assert system_error(outer) is inner and system_error(ValueError()) is None
    assert explain(outer) is None  # it says enough itself


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_no_draft(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / f"last{suffix}"
    content = {"model": {"a": torch.arange(50_000.0)}, "meta": {"format": 1, "kind": "x"}}
    with file_size_limit(100_000), pytest.raises(CannotWrite, match=r"File too large.*nothing was written: free space"):
        save_atomically(content, path)
    assert list(path.parent.iterdir()) == []
    save_atomically(content, path)
    before = path.read_bytes()
    with file_size_limit(100_000), pytest.raises(CannotWrite, match="the file from before is unchanged"):
        save_atomically({**content, "model": {"a": torch.zeros(50_000)}}, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    saved: Any = read_file(path)
    assert torch.equal(saved["model"]["a"], content["model"]["a"])


def test_something_in_the_way_of_a_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "last.pt").mkdir(parents=True)
    for path in (tmp_path / "file" / "last.pt", tmp_path / "folder" / "last.pt"):
        with pytest.raises(CannotWrite, match=f"{path} cannot be written"):
            save_atomically({"model": {}}, path)
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path / "folder") == ["last.pt"]


def test_an_error_in_the_content_of_a_file_is_not_taken_for_one_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle|lambda") as raised:
        save_atomically({"model": lambda: None}, tmp_path / "last.pt")
    assert not isinstance(raised.value, CannotWrite) and list(tmp_path.iterdir()) == []


def test_a_text_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_text(path, "old\n")
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        write_text(path, "new" * 1000)
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]
    write_text(path, "new\n")
    assert path.read_text() == "new\n"


def test_a_full_disk_under_tensorboard_prints_no_traceback_of_its_thread(tmp_path: Path, call: Call) -> None:
    from rich.console import Console

    from tools.engine.log import RunLog

    values = {"loss": 1.0, "lr": 1.0, "data_s": 0.0, "step_s": 1.0, "images_per_s": 1.0, "memory_mib": 1.0}

    def main() -> int:
        with file_size_limit(3000), RunLog(tmp_path, 1000, 0, Console(quiet=True)) as log:
            for step in range(1000):
                log.train(step, 0.0, values, {})
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        printed = call(SimpleNamespace(__name__="command", main=main))
    assert printed.code == 2 and "File too large" in printed.err and "Traceback" not in printed.err
