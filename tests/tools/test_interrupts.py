"""Ctrl-C ends a command with one line and exit code 130, whatever it is doing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import interrupts
from tools.config.detection import RunConfig

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path.name for path in (ROOT / "tools").glob("*.py") if "cli.run(main)" in path.read_text())
# Python itself ends like this where no handler is left: before the first line of a command, and after its last
ENDED = (interrupts.STOPPED, -signal.SIGINT)
needs_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is being imported")


def start(*command: object) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def interrupt_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> tuple[str, str]:
    """Press Ctrl-C when something is ready: all processes of the group get it; stdout and stderr."""
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def maps(process: subprocess.Popen[str], library: str) -> bool:
    try:
        return library in Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return False


@needs_maps
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_during_the_imports_of_a_command(command: str) -> None:
    process = start(f"tools/{command}", "--help")
    out, err = interrupt_when(process, lambda: maps(process, "libtorch") or maps(process, "_pydantic_core"))
    assert process.returncode in ENDED and err == "" and out in ("stopped\n", "")


def test_every_command_watches_for_ctrl_c_before_its_heavy_imports() -> None:
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        text = (ROOT / "tools" / command).read_text()
        heavy = re.search(r"^(?:from|import) (?!__future__|sys|os|time|pathlib)", text, re.MULTILINE)
        assert heavy is not None and 0 < text.find("interrupts.watch()") < heavy.start(), command


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["loading", "training", "scoring"])
def test_ctrl_c_while_a_run_is_loaded_trained_and_scored(moment: str, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ready = {
        "loading": lambda: (run / "data.txt").exists(),
        "training": lambda: (run / "metrics.jsonl").exists() and '"step": 1,' in (run / "metrics.jsonl").read_text(),
        "scoring": lambda: (run / "model.safetensors").exists(),
    }
    process = start("tools/train_det.py", tiny_yaml, "--set", "data.workers=2")
    out, err = interrupt_when(process, ready[moment])
    assert process.returncode in ENDED and err == "" and "Traceback" not in out
    assert out.splitlines()[-1].startswith(("stopped", str(run)))
    assert not (run / "run.lock").exists()
    assert (run / "checkpoints" / "last.pt").exists() or moment == "loading"


@pytest.mark.slow
@needs_maps
def test_ctrl_c_while_a_run_is_scored_by_its_own_command(tiny: Callable[..., RunConfig]) -> None:
    from tools.jobs import detection

    detection.train(tiny("schedule={iters: 1, warmup_iters: 0}", "data.val=null"))
    val = tiny().data.val
    assert val is not None
    sets = [f"data.val={{images: {val.images}, annotations: {val.annotations}}}"]
    process = start("tools/eval_det.py", tiny().out, *[part for one in sets for part in ("--set", one)])
    out, err = interrupt_when(process, lambda: maps(process, "pycocotools"))
    assert process.returncode in ENDED and "Traceback" not in out + err
    assert not (tiny().out / "results.json").exists() or "stopped" not in out


def test_handlers_from_before_are_back_after_a_command() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt), interrupts.raised():
            signal.raise_signal(number)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.watch()
        with interrupts.raised() as signals:
            signal.raise_signal(signal.SIGINT)
        assert not signals.seen and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
