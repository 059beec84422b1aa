"""Writing text files that are whole at any moment."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file so that `path` is a whole file at any moment, the old one or the new one.

    Args:
        path: the file to write; its folder must exist.
        text: its content.

    Raises:
        OSError: it cannot be written; an earlier file at `path` is unchanged, and nothing is left beside it.
    """
    draft = path.with_name(path.name + ".part")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
