"""The console that jobs and commands print to."""

from __future__ import annotations

import sys

from rich.console import Console

# 120 columns in a file or the log of a CI job, where rich would assume 80
CONSOLE = Console(emoji=False, width=None if sys.stdout.isatty() else 120, highlight=False)
