"""The lock of a run's folder: who is refused, and whose lock is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.tools.conftest import Said
from tests.tools.engine.tiny_training import Tiny
from tools import train_det
from tools.jobs import runs
from tools.jobs.run_lock import (
    LOCK,
    Holder,
    RunInUse,
    holds_lock,
    release_lock,
    require_unlocked,
    started,
    take_lock,
    this_process,
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this computer."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def lock(folder: Path, holder: Holder) -> Path:
    (folder / LOCK).write_text(json.dumps(asdict(holder)))
    return folder / LOCK


def held_by(process: subprocess.Popen[bytes]) -> Holder:
    return replace(this_process(), pid=process.pid, started=started(process.pid) or "")


def test_a_process_that_is_alive_keeps_its_lock_until_it_is_killed(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    lock(tmp_path, held_by(sleeper))
    with pytest.raises(RunInUse, match=f"in use by process {sleeper.pid} on this computer"):
        take_lock(tmp_path)
    release_lock(tmp_path)
    assert not holds_lock(tmp_path) and (tmp_path / LOCK).exists()
    sleeper.kill()
    deadline = time.monotonic() + 60
    while started(sleeper.pid) is not None:  # it is a zombie now: nobody has waited for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    note = take_lock(tmp_path)
    assert note is not None and f"process {sleeper.pid} ended without" in note
    assert holds_lock(tmp_path) and take_lock(tmp_path) is None
    release_lock(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_that_is_used_again_does_not_keep_a_lock(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    lock(tmp_path, replace(held_by(sleeper), started="another time"))
    assert "ended without" in (take_lock(tmp_path) or "")
    assert holds_lock(tmp_path)


@pytest.mark.parametrize(
    ("change", "where"), [({"host": "elsewhere"}, "on elsewhere"), ({"namespace": "pid:[1]"}, "in another container")]
)
def test_the_lock_of_another_computer_is_refused_until_it_is_removed_as_the_message_says(
    tmp_path: Path, change: dict[str, str], where: str
) -> None:
    path = lock(tmp_path, replace(this_process(), **change))  # type: ignore[arg-type]
    with pytest.raises(RunInUse, match=f"{where}, and whether .* remove {path}"):
        take_lock(tmp_path)
    path.unlink()
    assert take_lock(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}', "null", "\x00" * 10])
def test_a_lock_that_cannot_be_read_is_never_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(RunInUse, match="cannot be read .* remove that file"):
        require_unlocked(tmp_path)
    with pytest.raises(RunInUse):
        take_lock(tmp_path)
    assert (tmp_path / LOCK).read_text() == content


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_one_of_many_processes_takes_over_the_lock_of_a_dead_one(tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        folder.mkdir()
        lock(folder, replace(this_process(), pid=2**22 + 1, started="long ago"))
        hold, release = os.pipe()
        children = []
        for _ in range(6):
            if (child := os.fork()) == 0:
                code = 3
                try:
                    take_lock(folder)
                    code = 0
                except RunInUse:
                    code = 1
                finally:
                    os.close(release)
                    (folder / f"done.{os.getpid()}").touch()
                    os.read(hold, 1)  # the winner stays alive until all have tried
                    os._exit(code)
            children.append(child)
        os.close(hold)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("done.*"))) < len(children):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.close(release)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 1, 1, 1, 1, 1]


def test_a_folder_that_another_process_trains_into_is_refused_by_every_start(
    tiny: Tiny, tiny_yaml: Path, call: Callable[..., Said], sleeper: subprocess.Popen[bytes]
) -> None:
    config = tiny()
    runs.prepare_folder(config, resume=False, overwrite=False)
    lock(config.out, held_by(sleeper))
    before = {path.name: path.read_bytes() for path in config.out.iterdir()}
    for option in ((), ("--overwrite",), ("--resume",)):
        printed = call(train_det, tiny_yaml, *option)
        assert printed.code == 2 and f"in use by process {sleeper.pid}" in printed.err
    assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before
