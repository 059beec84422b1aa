"""What the commands share: their options, and errors that a person can act on instead of a traceback."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from heads.images import UnreadableImage
from resnet_backbone import WeightMismatch
from resnet_backbone.weights.load import checkpoint_of as last_checkpoint

from .settings import CommonConfig, ConfigError, settings

CONSOLE = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
# what a caller did wrong, or a file did: its message is enough
EXPECTED = (
    ConfigError,
    WeightMismatch,
    UnreadableImage,
    FileNotFoundError,
    FileExistsError,
    ConnectionError,
    ValueError,
)


def parser(description: str, *, config: type[CommonConfig] | None = None) -> argparse.ArgumentParser:
    """With a kind of configuration: `--set a.b=c`, and a `--help` that lists its settings with defaults and units."""
    epilog = None
    if config is not None:
        rows = [f"  {name:38} {text}" for name, text in settings(config)]
        epilog = "settings (in a YAML file, or --set section.key=value):\n" + "\n".join(rows)
    made = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if config is not None:
        made.add_argument(
            "--set", action="append", default=[], metavar="A.B=C", help="override one setting; repeatable"
        )
    return made


def run(main: Callable[[], int | None]) -> None:
    """Exit codes: 0 done, 1 training failed, 2 the call cannot be carried out, 130 stopped on request."""
    warnings.filterwarnings("ignore", message=".*__array__ implementation doesn't accept a copy keyword.*")
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt as stop:
        CONSOLE.print(f"[yellow]{stop or 'stopped'}[/]", markup=True)
        sys.exit(130)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def checkpoint_of(run_or_weights: Path) -> Path:
    """A run's folder -> its last checkpoint; a file is itself. Raises FileNotFoundError."""
    return last_checkpoint(run_or_weights) if run_or_weights.is_dir() else run_or_weights
