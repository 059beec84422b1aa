"""The console that jobs and commands print to."""

from __future__ import annotations

import sys

from rich.console import Console

CONSOLE = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
