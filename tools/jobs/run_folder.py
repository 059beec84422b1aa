"""The folder of a run: it is never overwritten by mistake, by two processes, or by a run that does not start.

`--overwrite` sets the earlier run aside, as OUT.replaced beside OUT, and deletes it after the first step of the new
one. If the new one does not get there, the earlier one is put back: at once, or, if the process was killed, by the
next start. A marker file in OUT.replaced says that it was set aside; a folder without it is never touched.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from resnet_backbone.errors import AlreadyExists, InvalidValue, MissingFile
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig
from tools.config.settings import to_yaml
from tools.console import CONSOLE
from tools.files import write_text

from .resuming import check_settings, keep_settings
from .run_lock import LOCK, holds_lock, release_lock, require_unlocked, take_lock

TrainingConfig = RunConfig | ClassifierRunConfig
MARKER = "set_aside.txt"
CHECKPOINT = Path("checkpoints") / "last.pt"


def claim_folder(config: TrainingConfig, *, resume: bool, overwrite: bool) -> None:
    """Take the folder of a run for this process: put back what a killed start set aside, check, lock, prepare.

    Args:
        config: the settings of the run; `out` is the folder.
        resume: as for `prepare_folder`.
        overwrite: as for `prepare_folder`.

    Raises:
        RunInUse: another process writes to the folder.
        UserError: as for `prepare_folder`; the folder is then as it was.
    """
    folder = real_folder(config.out)
    for place in (folder, aside_of(folder)):
        require_unlocked(place)
    for note in recover(folder):
        CONSOLE.print(note, markup=False, soft_wrap=True)
    made = not folder.exists()
    try:
        check_folder(config, resume=resume, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        if (taken_over := take_lock(folder)) is not None:
            CONSOLE.print(taken_over, markup=False, soft_wrap=True)
        prepare_folder(config, resume=resume, overwrite=overwrite)
    except BaseException:
        free_folder(config, keep=False)
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


def free_folder(config: TrainingConfig, *, keep: bool) -> None:
    """Give the folder of a run free.

    Args:
        config: the settings of the run.
        keep: whether the run ended well. If not, and it took no step, the run that it set aside is put back.
    """
    folder = real_folder(config.out)
    aside = aside_of(folder)
    if not keep and _is_set_aside(aside) and holds_lock(aside):
        put_back(folder)
        CONSOLE.print(f"the earlier run in {config.out} was put back", markup=False, soft_wrap=True)
    release_lock(folder)


def check_folder(config: TrainingConfig, *, resume: bool, overwrite: bool) -> None:
    """Check that a run may be written to its folder. Nothing is changed.

    Args:
        config: the settings of the run; `out` is the folder.
        resume: the folder must hold a checkpoint of a run with settings that fit.
        overwrite: the folder may hold a run.

    Raises:
        MissingFile: there is no checkpoint to resume from.
        InvalidValue: the run to resume has other settings, which a resumed run cannot change; or the run needs a file
            of the one that it would replace.
        AlreadyExists: the folder holds a run and neither `resume` nor `overwrite` is set, or it holds other files.
    """
    out, folder = config.out, real_folder(config.out)
    if folder.exists() and not folder.is_dir():
        raise AlreadyExists(f"{out} is a file: set `out` to a folder")
    if resume:
        if not (folder / CHECKPOINT).is_file():
            raise MissingFile(f"{out} has no checkpoint to resume from: start it without --resume")
        check_settings(config, folder)
        return
    if not folder.exists() or not _entries(folder):
        return
    if not (folder / "config.yaml").is_file():
        raise AlreadyExists(f"{out} is not empty and holds no run: set `out` to another folder")
    if not overwrite and _took_a_step(folder):
        raise AlreadyExists(f"{out} already holds a run: --resume continues it, --overwrite replaces it")
    if overwrite:
        _check_needs_nothing_of(config, folder)


def prepare_folder(config: TrainingConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder of a run and write its config.yaml; a resumed run keeps the one that it has until its first step.

    Args:
        config: the settings of the run; `out` is the folder.
        resume: as for `check_folder`.
        overwrite: set an earlier run in the folder aside, until `settle` deletes it.

    Raises:
        UserError: as for `check_folder`.
    """
    check_folder(config, resume=resume, overwrite=overwrite)
    folder = real_folder(config.out)
    if not resume:
        if overwrite and folder.exists() and _entries(folder):
            set_aside(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", to_yaml(config))


def settle(config: TrainingConfig, step: int) -> None:
    """Make a start final, after its first step: delete the run that was set aside, or note what a resumed run changed.

    Args:
        config: the settings of the run.
        step: the step that the run was resumed from.
    """
    folder = real_folder(config.out)
    aside = aside_of(folder)
    if _is_set_aside(aside):
        removed = _removed_of(folder)
        os.rename(aside, removed)
        _remove(removed)
    keep_settings(config, folder, step)


def recover(folder: Path) -> list[str]:
    """Finish what a killed process began: put back a run that it set aside, or finish deleting it.

    Args:
        folder: the folder of the run, without symbolic links.

    Returns:
        What was done, for the user.

    Raises:
        AlreadyExists: the folder holds a run, and an earlier one is set aside: the user must choose.
    """
    notes = []
    aside, removed = aside_of(folder), _removed_of(folder)
    with suppress(OSError):  # it is not there, or not empty
        removed.rmdir()
    if _is_set_aside(removed):
        _remove(removed)
        notes.append(f"{removed}, the rest of an earlier run that was overwritten, is deleted")
    if _is_set_aside(aside):
        take_lock(aside)  # of two starts, one puts it back
        if folder.exists() and _logged_a_step(folder):
            raise AlreadyExists(
                f"{folder} holds a run, and the run that it should replace is still in {aside} ({MARKER} there says "
                "where it came from): remove or rename one of the two"
            )
        put_back(folder)
        notes.append(f"a start with --overwrite was killed before its first step: the earlier run is back in {folder}")
    else:  # killed before it was renamed, or after it was renamed back
        for name in (MARKER, f"{MARKER}.part"):
            if (folder / name).is_file():
                (folder / name).unlink()
    return notes


def set_aside(folder: Path) -> None:
    """Rename the folder of a run to OUT.replaced, and make an empty one that this process has locked if it had before.

    Args:
        folder: the folder, without symbolic links.

    Raises:
        AlreadyExists: something else has that name, or the folder cannot be renamed.
    """
    aside = aside_of(folder)
    for place in (aside, _removed_of(folder)):
        if os.path.lexists(place):
            raise AlreadyExists(f"{place} is in the way, --overwrite keeps the earlier run there: rename or remove it")
    write_text(
        folder / MARKER,
        f"This run was in {folder}.\nA command with --overwrite set it aside here, and deletes it after the first step "
        "of the new run.\nIf that command was killed, the next one with the same `out` puts this run back.\n",
    )
    try:
        os.rename(folder, aside)
    except OSError as error:
        (folder / MARKER).unlink()
        raise AlreadyExists(
            f"the run in {folder} cannot be set aside ({error.strerror}): it is a mounted disk, or the folder above is "
            "not writable: set `out` to a folder inside it"
        ) from error
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise AlreadyExists(
            f"another process made {folder} at the same moment; the earlier run is in {aside}: end that process, "
            f"remove {folder}, and start again"
        ) from error
    if (aside / LOCK).exists():
        take_lock(folder)


def put_back(folder: Path) -> None:
    """Put the run that was set aside back, in place of what a start without a step has written.

    Args:
        folder: the folder, without symbolic links.
    """
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(aside_of(folder), folder)
    (folder / MARKER).unlink()


def real_folder(out: Path) -> Path:
    """The folder that `out` leads to.

    Args:
        out: the setting.

    Returns:
        The absolute path without symbolic links.

    Raises:
        MissingFile: `out` is a symbolic link to something that does not exist.
    """
    real = Path(os.path.realpath(out))
    if out.is_symlink() and not real.exists():
        raise MissingFile(
            f"{out} is a symbolic link to {real}, which does not exist: make that folder, or mount its disk"
        )
    return real


def aside_of(folder: Path) -> Path:
    """Where the run in a folder is kept while another one starts in its place."""
    return folder.with_name(f"{folder.name}.replaced")


def _removed_of(folder: Path) -> Path:
    """Where the run that was set aside is moved to, at once, before its files are deleted one by one."""
    return folder.with_name(f"{folder.name}.removed")


def _entries(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(LOCK)]


def _is_set_aside(aside: Path) -> bool:
    return (aside / MARKER).is_file()


def _logged_a_step(folder: Path) -> bool:
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def _took_a_step(folder: Path) -> bool:
    """Whether a folder holds a run that is worth something: a start that failed while it was loading is not."""
    return _logged_a_step(folder) or (folder / CHECKPOINT).exists() or (folder / "model.safetensors").exists()


def _remove(removed: Path) -> None:
    """Remove a run that was set aside; its marker goes last, so that a removal that is cut off can be finished."""
    for path in removed.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()
    (removed / MARKER).unlink()
    removed.rmdir()


def _check_needs_nothing_of(config: TrainingConfig, folder: Path) -> None:
    """Refuse to overwrite a run whose files the new one starts from, such as `init_from`."""

    def walk(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}.{key}" if name else str(key), part)
        elif isinstance(value, str) and name != "out" and _exists_in(folder, value):
            raise InvalidValue(
                f"{name} is {value}, in the run that --overwrite would replace: set `out` to another folder"
            )

    walk("", config.model_dump(mode="json"))


def _exists_in(folder: Path, path: str) -> bool:
    return os.path.exists(path) and Path(os.path.realpath(path)).is_relative_to(folder)
