"""Ctrl-C and SIGTERM, from the first import of a command to its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED = 130  # exit code


def watch() -> None:
    """Let Ctrl-C end this process at once, with one line: for the imports of a command, which hold nothing to clean up.

    A KeyboardInterrupt in the middle of an import may be swallowed there, or come out as an ImportError.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored by nohup, for example
        signal.signal(signal.SIGINT, _end)


class Interrupts:
    """What came while a command ran.

    Attributes:
        seen: whether Ctrl-C or SIGTERM came.
        over: set it when nothing is left to clean up: the next signal ends the process at once.
    """

    def __init__(self) -> None:
        self.seen = self.over = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt."""
        if self.over:
            _end(number, frame)
        self.seen = True
        raise KeyboardInterrupt


@contextmanager
def raised() -> Iterator[Interrupts]:
    """Raise KeyboardInterrupt at Ctrl-C and at SIGTERM. The handlers from before are back afterwards.

    Yields:
        What came.
    """
    interrupts = Interrupts()
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # signals are for no other thread
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, interrupts)
    try:
        yield interrupts
    finally:
        for restored, handler in previous.items():
            signal.signal(restored, handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(1, b"stopped\n")
    os._exit(STOPPED)
