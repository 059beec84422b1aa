"""An earlier run survives every start that fails and every kill; a folder without a run is never touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_backbone.errors import AlreadyExists, InvalidValue, MissingFile, UserError
from tests.tools.conftest import Said
from tests.tools.engine.tiny_training import Tiny
from tools import train_det
from tools.config.detection import RunConfig
from tools.jobs import detection, run_folder, runs
from tools.jobs.run_lock import LOCK

SHORT = ("schedule={iters: 1, warmup_iters: 0}", "data.val=null", "model.mask=null", "train.batch_size=2")
CHANGES_FILES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def tree(folder: Path) -> dict[str, str]:
    """Every file of a folder but its lock, with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


def old_run(config: RunConfig) -> dict[str, str]:
    """A folder with the files of a run, nested as they are."""
    runs.prepare_folder(config, resume=False, overwrite=False)
    for name in ("checkpoints/last.pt", "model.safetensors", "tensorboard/events", "notes/own.txt"):
        (config.out / name).parent.mkdir(exist_ok=True)
        (config.out / name).write_text(f"old {name}")
    (config.out / "metrics.jsonl").write_text('{"step": 1}\n')
    return tree(config.out)


def test_a_start_that_fails_while_it_loads_puts_the_earlier_run_back(
    tiny: Tiny, tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old_run(tiny(*SHORT))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_shapes / "images" / "train", broken)
    for path in broken.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    fails = (
        "data.train.annotations=typo.json",
        "data.train.images=typo",
        f"data.val={{images: {tiny_shapes}, annotations: typo.json}}",
        "backbone_weights=typo.pth",
        "init_from=typo",
        f"data.train.images={broken}",
        "model.norm=sync_bn",
        "train.precision=fp16",
    )
    for wrong in fails:
        with pytest.raises(UserError):
            detection.train(tiny(*SHORT, wrong), overwrite=True)
        assert tree(tmp_path / "run") == before and not (tmp_path / "run" / LOCK).exists(), wrong

    def interrupted(config: RunConfig) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(detection, "load_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detection.train(tiny(*SHORT), overwrite=True)
    assert tree(tmp_path / "run") == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("run.")]


def test_a_run_that_took_its_first_step_has_replaced_the_earlier_one(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(*SHORT)
    old_run(config)
    detection.train(config, overwrite=True)
    assert not (config.out / "notes").exists() and (config.out / "model.safetensors").stat().st_size > 1000
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("run.")]
    assert not (config.out / LOCK).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("ends", ["settled", "put back"])
def test_one_whole_run_is_left_whenever_the_process_is_killed(ends: str, tiny: Tiny, tmp_path: Path) -> None:
    """The process ends without a word before its first, second, third ... change of the file system."""
    config = tiny(*SHORT)
    old, killed, outcomes = old_run(config), True, []
    shutil.copytree(config.out, tmp_path / "copy")
    for moment in range(1, 100):
        if (child := os.fork()) == 0:
            die_before(moment)
            try:
                runs.prepare_folder(config, resume=False, overwrite=True)
                (config.out / "data.txt").write_text("new")
                if ends == "put back":
                    run_folder.put_back(config.out)
                else:
                    run_folder.settle(config, 0)
            finally:
                os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        run_folder.recover(config.out)
        left = tree(config.out)
        outcomes.append("old" if left == old else "new")
        assert left == old or sorted(left) == ["config.yaml", "data.txt"], (moment, sorted(left))
        beside = [path.name for path in tmp_path.iterdir() if path.name.startswith("run.")]
        assert beside == [], (moment, beside)
        if not killed:
            break
        shutil.rmtree(config.out)
        shutil.copytree(tmp_path / "copy", config.out)
    assert not killed and moment > 6
    assert outcomes == sorted(outcomes, reverse=True)  # old up to a moment, and new from then on
    assert outcomes[0] == "old" and outcomes[-1] == ("new" if ends == "settled" else "old")


def die_before(moment: int) -> None:
    """End this process before a change of the file system, as SIGKILL would."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[1], str) and set("wxa") & set(arguments[1])
        if event in CHANGES_FILES or writes:
            count += 1
            if count == moment:
                os._exit(9)

    sys.addaudithook(hook)


def test_a_killed_start_is_mended_by_the_next_one_which_says_so(
    tiny: Tiny, tiny_yaml: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    config = tiny()
    before = old_run(config)
    runs.prepare_folder(config, resume=False, overwrite=True)  # and the process is killed here
    assert (tmp_path / "run.replaced").is_dir()
    printed = call(train_det, tiny_yaml)
    assert printed.code == 2 and "already holds a run" in printed.err
    assert "killed before its first step: the earlier run is back" in printed.out
    assert tree(config.out) == before


def test_two_whole_runs_are_never_decided_between(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    old_run(config)
    runs.prepare_folder(config, resume=False, overwrite=True)
    (config.out / "metrics.jsonl").write_text('{"step": 1}\n')
    both = tree(tmp_path / "run"), tree(tmp_path / "run.replaced")
    for overwrite in (False, True):
        with pytest.raises(AlreadyExists, match="is still in .*run.replaced .*: remove or rename one of the two"):
            run_folder.claim_folder(config, resume=False, overwrite=overwrite)
        (tmp_path / "run.replaced" / LOCK).unlink(missing_ok=True)
    assert (tree(tmp_path / "run"), tree(tmp_path / "run.replaced")) == both


def test_folders_of_the_user_beside_a_run_are_never_touched(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    old_run(config)
    for name in ("run.replaced", "run.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("ten years of work")
        assert run_folder.recover(config.out) == []
        before = tree(tmp_path)
        with pytest.raises(AlreadyExists, match=f"{name} is in the way, .*: rename or remove it"):
            runs.prepare_folder(config, resume=False, overwrite=True)
        assert tree(tmp_path) == before
        (tmp_path / name).rename(tmp_path / "elsewhere" if name == "run.replaced" else tmp_path / "moved")
    runs.prepare_folder(config, resume=False, overwrite=True)


def test_a_start_that_failed_does_not_stand_in_the_way_of_the_next(tiny: Tiny) -> None:
    with pytest.raises(MissingFile):
        detection.train(tiny(*SHORT, "backbone_weights=typo.pth"))
    detection.train(tiny(*SHORT))
    with pytest.raises(AlreadyExists, match="already holds a run"):
        detection.train(tiny(*SHORT))


def test_a_run_that_starts_from_the_one_that_it_would_replace_is_refused(tiny: Tiny) -> None:
    before = old_run(tiny())
    for name in ("", "/model.safetensors", "/checkpoints/../checkpoints/last.pt"):
        config = tiny(f"init_from={tiny().out}{name}")
        with pytest.raises(InvalidValue, match="init_from is .* set `out` to another folder"):
            runs.prepare_folder(config, resume=False, overwrite=True)
    assert tree(tiny().out) == before


def test_a_run_behind_a_symbolic_link_is_replaced_behind_it(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    config = tiny(*SHORT, f"out={tmp_path / 'link'}")
    with pytest.raises(MissingFile, match=r"link is a symbolic link to .*disk/run, which does not exist: make"):
        runs.prepare_folder(config, resume=False, overwrite=False)
    (tmp_path / "disk" / "run").mkdir()
    old_run(config)
    detection.train(config, overwrite=True)
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path / "disk")) == ["run"]
    assert not (tmp_path / "disk" / "run" / "notes").exists()


def test_a_file_where_the_folder_should_be_is_an_error_of_one_line(
    tiny_yaml: Path, tmp_path: Path, call: Callable[..., Said]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/run"):
        for option in ((), ("--overwrite",)):
            printed = call(train_det, tiny_yaml, *option, "--set", f"out={tmp_path / out}")
            assert printed.code == 2 and printed.err.count("\n") == 1 and str(tmp_path / "file") in printed.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix", reason="limits of the size of files are POSIX's")
def test_a_full_disk_ends_with_one_line_and_the_earlier_run_stays(tiny: Tiny, tiny_yaml: Path) -> None:
    """A limit of the size of files: no checkpoint can be written."""
    import resource

    before = old_run(tiny())
    process = subprocess.run(
        [sys.executable, "tools/train_det.py", str(tiny_yaml), "--overwrite"],
        cwd=Path(__file__).resolve().parents[3],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "last.pt cannot be written (File too large)" in process.stderr
    assert "the earlier run in" in process.stdout and "was put back" in " ".join(process.stdout.split())
    assert tree(tiny().out) == before


def test_the_marker_of_a_run_that_was_set_aside_says_where_it_was(tiny: Tiny, tmp_path: Path) -> None:
    old_run(tiny())
    runs.prepare_folder(tiny(), resume=False, overwrite=True)
    assert str(tiny().out) in (tmp_path / "run.replaced" / run_folder.MARKER).read_text()
    assert json.loads((tmp_path / "run.replaced" / "metrics.jsonl").read_text())["step"] == 1
