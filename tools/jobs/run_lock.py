"""The lock of a run's folder: one process at a time writes to it."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from resnet_backbone.errors import UserError

LOCK = "run.lock"


class RunInUse(UserError, RuntimeError):
    """Another process writes to the folder of a run, or it cannot be known whether one does."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        host: name of its computer.
        pid: its process id there.
        started: when it started: a process id alone is used again after a while.
        namespace: the space of process ids that it lives in (containers have their own); "" where there are none.
    """

    host: str
    pid: int
    started: str
    namespace: str = ""


def take_lock(folder: Path) -> str | None:
    """Take the lock of a folder for this process. A lock that this process holds already stays.

    Args:
        folder: an existing folder.

    Returns:
        None, or a message for the user: the lock of a process that has ended was taken over.

    Raises:
        RunInUse: another process holds the lock.
        OSError: the lock cannot be written.
    """
    path, own = folder / LOCK, this_process()
    note = None
    for _ in range(3):
        try:
            _create(path, own)
        except FileExistsError:
            holder = require_unlocked(folder)
            if holder == own:
                return note
            if holder is not None:
                note = f"process {holder.pid} ended without removing its lock of {folder}: it is removed"
            _remove_stale(path, holder)
        else:
            return note
    raise RunInUse(f"several processes take the lock {path} at the same time: start one of them")


def require_unlocked(folder: Path) -> Holder | None:
    """Check that no other process holds the lock of a folder.

    Args:
        folder: a folder; it need not exist.

    Returns:
        Who holds the lock: None, this process, or one that has ended.

    Raises:
        RunInUse: a process that is alive holds it, or one of another computer, or the lock cannot be read.
    """
    path, own = folder / LOCK, this_process()
    try:
        holder = Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RunInUse(
            f"the lock {path} cannot be read ({error}): if no process writes to this folder, remove that file"
        ) from error
    if (holder.host, holder.namespace) != (own.host, own.namespace):
        where = "in another container" if holder.host == own.host else f"on {holder.host}"
        raise RunInUse(
            f"{folder} is in use by process {holder.pid} {where}, and whether that is still alive cannot be seen from "
            f"here: set `out` to another folder, or, if it has ended, remove {path}"
        )
    if holder != own and started(holder.pid) == holder.started:
        raise RunInUse(
            f"{folder} is in use by process {holder.pid} on this computer: wait for it or end it (kill {holder.pid}), "
            "or set `out` to another folder"
        )
    return holder


def holds_lock(folder: Path) -> bool:
    """Whether this process holds the lock of a folder."""
    try:
        return Holder(**json.loads((folder / LOCK).read_text(encoding="utf-8"))) == this_process()
    except (OSError, ValueError, TypeError):
        return False


def release_lock(folder: Path) -> None:
    """Remove the lock of a folder if this process holds it."""
    if holds_lock(folder):
        (folder / LOCK).unlink(missing_ok=True)


def this_process() -> Holder:
    """This process, as the holder of a lock."""
    pid = os.getpid()
    return Holder(socket.gethostname(), pid, started(pid) or "", _namespace())


def started(pid: int) -> str | None:
    """When a process of this computer started; None if there is none of this id, or it has ended (a zombie)."""
    try:
        process = psutil.Process(pid)
        with suppress(psutil.AccessDenied):  # a process of another user, on some systems
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
        fallback = f"{process.create_time():.0f}"
    except psutil.NoSuchProcess:
        return None
    try:  # in ticks since the computer started: unlike the time of day they never change when the clock is set
        ticks = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {ticks}"
    except (OSError, IndexError):
        return fallback


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _create(path: Path, own: Holder) -> None:
    """Write a lock that does not exist yet, whole from the first moment where the disk has hard links."""
    draft = path.with_name(f"{LOCK}.{own.pid}.part")
    try:
        draft.write_text(json.dumps(asdict(own)) + "\n", encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:
            with open(path, "x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(own)) + "\n")
    finally:
        with suppress(OSError):
            draft.unlink()


def _remove_stale(path: Path, holder: Holder | None) -> None:
    """Remove the lock of a process that has ended, but not the one that another process has taken meanwhile."""
    aside = path.with_name(f"{LOCK}.{os.getpid()}.stale")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        with suppress(ValueError, TypeError):
            if Holder(**json.loads(aside.read_text(encoding="utf-8"))) != holder:
                os.rename(aside, path)
        aside.unlink()
