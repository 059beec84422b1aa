"""Errors of the system and of the libraries below as errors that tell the user what to do.

A full disk, a killed loader process or another process of the run that has stopped are no faults of this project: they
become subclasses of `UserError`, which commands show as one message. The original error is always chained.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from resnet_backbone.errors import UserError


class SystemFailure(UserError, OSError):
    """The operating system refused something: no space, no permission, too many open files, a lost disk."""


class OutOfMemory(UserError, MemoryError):
    """There is not enough memory on the computer or on the GPU."""


class ProcessLost(UserError, RuntimeError):
    """A loader process, or another process of the run, has ended before its work was done."""


FREE_SPACE = "free space on its disk, or write to another one"
OPEN_FILES = "raise the limit (ulimit -n 65536 in the shell that starts the command), or lower data.workers"
LESS_MEMORY = (
    "lower data.workers, raise train.accumulate (the same batch in more parts), make the images smaller (input), or "
    "when scoring lower eval.batch_size"
)
SHARED_MEMORY = "give the container more shared memory (docker run --shm-size 8g), or set data.workers to 0"

# errno -> what to do about it
FIXES: dict[int, str] = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE + " (your quota is used up)",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or write to another disk",
    errno.EACCES: "give yourself the permission to use it (ls -ld shows its owner), or use another path",
    errno.EPERM: "give yourself the permission to use it (ls -ld shows its owner), or use another path",
    errno.EROFS: "its disk is mounted read-only: use another path",
    errno.EMFILE: OPEN_FILES,
    errno.ENFILE: OPEN_FILES,
    errno.ENOMEM: LESS_MEMORY,
    errno.ENOENT: "it does not exist, or was removed meanwhile: correct the path",
    errno.ENOTDIR: "a part of this path is a file where a folder is needed: use another path",
    errno.EISDIR: "this is a folder where a file is needed: use another path",
    errno.EEXIST: "something of this name is in the way: move it, or use another path",
    errno.ELOOP: "these symbolic links lead back to themselves: correct them",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.EBUSY: "something uses it, or a disk is mounted there: use another path",
    errno.EIO: "the disk failed: check it, or copy the data to another one",
    errno.ESTALE: "the network disk has lost this file: mount it again",
    errno.EPIPE: "the program that read the output has ended: write the output to a file",
}
# what is wrong with the computer, not with a file, whichever file it was met at: never a reason to skip an image
SYSTEM_WIDE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE})

# texts of RuntimeErrors of torch; its messages are all that tells these apart
LOADER = ("DataLoader worker",)
SHARED = ("Bus error", "shared memory", "unable to write to file </torch_")
MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory")
PEERS = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "NCCL error", "Broken pipe")


def system_error(error: BaseException | None) -> OSError | None:
    """Find the error of the operating system that another error came from.

    Args:
        error: an error; its causes are followed.

    Returns:
        The first one with an `errno`, or None.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__
    return None


def explain(error: BaseException, where: object = "the system") -> UserError | None:
    """Explain an error that the system or a library below raised.

    Args:
        error: any error.
        where: what to name if an error of the system names no file, as when a disk is full.

    Returns:
        An error that says what to do, or None if this one is not of the kinds above: then it is a bug.
    """
    if isinstance(error, UserError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        path = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        fix = FIXES.get(error.errno, "check the disk and the path")
        return SystemFailure(f"{path or where}: {error.strerror or error}: {fix}")
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(part in text for part in MEMORY)):
        first = text.splitlines()[0] if text else "out of memory"
        return OutOfMemory(f"there is not enough memory ({first[:200]}): {LESS_MEMORY}")
    if isinstance(error, RuntimeError):
        return _explain_torch(text)
    return None


def _explain_torch(text: str) -> UserError | None:
    """A RuntimeError of torch's loader or of its process group, by its text."""
    if "Too many open files" in text:
        return SystemFailure(f"too many open files: {OPEN_FILES}")
    if any(part in text for part in SHARED):
        return ProcessLost(f"a loader process ran out of shared memory (/dev/shm): {SHARED_MEMORY}")
    if any(part in text for part in LOADER):
        first = text.strip().splitlines()[0][:200]
        return ProcessLost(f"a loader process has ended ({first}), most often for want of memory: {LESS_MEMORY}")
    if any(part in text for part in PEERS):
        return ProcessLost("another process of this run has ended: its message says why; mend that and start again")
    return None


@contextmanager
def during(what: str) -> Iterator[None]:
    """Say what was being done when the system or a library below failed.

    Args:
        what: such as "detecting objects in photo.jpg (640x480)"; it begins the message.

    Raises:
        UserError: as for `explained`.
    """
    try:
        yield
    except Exception as error:
        if (known := explain(error)) is None:
            raise
        raise type(known)(f"{what}: {known}") from error


@contextmanager
def explained(where: object = "the system") -> Iterator[None]:
    """Raise errors of the system and of libraries below as `UserError`s.

    Args:
        where: as for `explain`.

    Raises:
        SystemFailure: the operating system refused something.
        OutOfMemory: there is not enough memory.
        ProcessLost: a loader process or another process of the run has ended.
    """
    try:
        yield
    except Exception as error:
        if (known := explain(error, where)) is None:
            raise
        raise known from error
