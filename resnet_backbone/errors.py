"""Errors that the caller can fix, and the suggestion of a valid name in their messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in an argument, a setting or a file, as opposed to a fault of this library.

    The message gives the value, what was expected and how to fix it. The commands print it without a traceback.
    Concrete classes also derive from the built-in exception that callers would catch.
    """


class InvalidValue(UserError, ValueError):
    """An argument, a setting or the content of a file that cannot be used."""


class InvalidType(UserError, TypeError):
    """An argument of the wrong type."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that does not exist."""


class AlreadyExists(UserError, FileExistsError):
    """A file or folder that would be overwritten."""


class CannotWrite(UserError, OSError):
    """A file that cannot be written: no space left, a read-only disk, a file in the way of a folder."""


class DownloadFailed(UserError, ConnectionError):
    """A file that could not be downloaded."""


class MissingPackage(UserError, ImportError):
    """A package that is not installed, or is too old."""


def did_you_mean(name: object, valid: Iterable[object]) -> str:
    """Suggest a valid name for one that is not.

    Args:
        name: the name that was given.
        valid: the names that exist.

    Returns:
        "did you mean 'nearest'?", or the list of valid names if none is similar.
    """
    names = [str(v) for v in valid]
    nearest = get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"did you mean {nearest[0]!r}?" if nearest else f"give one of {', '.join(names)}"
