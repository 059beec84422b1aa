"""What the commands share: their options, and how errors are shown."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable

from resnet_backbone.errors import UserError

from .config.settings import CommonConfig, settings
from .console import CONSOLE


def parser(description: str, *, config: type[CommonConfig] | None = None) -> argparse.ArgumentParser:
    """Make a command's parser, with `--debug`.

    Args:
        description: the help text.
        config: a kind of configuration; adds `--set a.b=c`, and lists its settings with defaults and units in the help.

    Returns:
        The parser.
    """
    epilog = None
    if config is not None:
        rows = [f"  {name:38} {text}" for name, text in settings(config)]
        epilog = "settings (in a YAML file, or --set section.key=value):\n" + "\n".join(rows)
    made = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of every error")
    if config is not None:
        made.add_argument(
            "--set", action="append", default=[], metavar="A.B=C", help="override one setting; repeatable"
        )
    return made


def run(main: Callable[[], int | None]) -> None:
    """Run a command and exit.

    A `UserError` is printed as one message. Any other exception is a fault of this project and is printed with its
    traceback; `--debug` prints every traceback. Exit codes: 0 done, 1 training failed or a fault of this project, 2 the
    command cannot be carried out, 130 stopped on request.

    Args:
        main: the command; its result is the exit code.
    """
    warnings.filterwarnings("ignore", message=".*__array__ implementation doesn't accept a copy keyword.*")
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt as stop:
        CONSOLE.print(f"[yellow]{stop or 'stopped'}[/]", markup=True)
        sys.exit(130)
    except UserError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, FloatingPointError) else 2)
    except Exception:
        traceback.print_exc()
        print(
            "error: this is a fault of resnet-backbone, not of your input: please report it with the lines above",
            file=sys.stderr,
        )
        sys.exit(1)
