"""What the commands share: their options, how errors are shown, and the exit codes."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from resnet_backbone.errors import UserError

from . import interrupts
from .config.settings import CommonConfig, load, settings
from .console import CONSOLE
from .devices import keep_freed_memory
from .failures import explain

Config = TypeVar("Config", bound=CommonConfig)
Settings = TypeVar("Settings", bound=CommonConfig, contravariant=True)


class TrainingJob(Protocol[Settings]):
    """A job that trains, such as `jobs.detection.train`."""

    def __call__(self, config: Settings, *, resume: bool, overwrite: bool) -> object:
        """Train; `resume` continues the run in `config.out`, `overwrite` replaces it."""


def parser(description: str, *, config: type[CommonConfig] | None = None) -> argparse.ArgumentParser:
    """Make the parser of a command, with `--debug`.

    Args:
        description: the help text.
        config: a kind of configuration; adds `--set a.b=c` and a list of its settings to the help.

    Returns:
        The parser, for the arguments of the command.
    """
    epilog = None
    if config is not None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
        rows = [
            textwrap.fill(
                f"{name:38} {text}", width, initial_indent="  ", subsequent_indent=" " * 41, break_on_hyphens=False
            )
            for name, text in settings(config)
        ]
        heading = "settings, in a YAML file or as --set section.key=value (default; description):"
        epilog = "\n".join([heading, *rows])
    command = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--debug", action="store_true", help="print the traceback of every error")
    if config is not None:
        command.add_argument(
            "--set", action="append", default=[], metavar="A.B=C", help="override one setting; repeatable"
        )
    return command


def training_parser(description: str, config: type[CommonConfig]) -> argparse.ArgumentParser:
    """Make the parser of a training command, with `--resume` and `--overwrite`.

    Args:
        description: the help text.
        config: the kind of configuration.

    Returns:
        The parser.
    """
    command = parser(description, config=config)
    command.add_argument("--resume", action="store_true", help="continue the run in `out` from its last checkpoint")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an earlier run in `out`; it is deleted after the first step of the new one, or put back",
    )
    return command


def training_command(description: str, config: type[Config], train: TrainingJob[Config]) -> int:
    """Parse the arguments of a training command and train.

    Args:
        description: the help text.
        config: the kind of configuration.
        train: the job.

    Returns:
        The exit code.
    """
    command = training_parser(description, config)
    command.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of the settings that are no defaults")
    args = command.parse_args()
    train(load(config, args.config, args.set), resume=args.resume, overwrite=args.overwrite)
    return 0


def run(main: Callable[[], int | None], *, keep_memory: bool = True) -> None:
    """Run a command and exit.

    A `UserError` is printed as one message, and so are errors of the system, such as a full disk; any other exception
    with its traceback. `--debug` prints every traceback. Exit codes: 0 done; 1 a check failed, training met a loss that
    is not finite, or an error of this project; 2 a mistake in an argument, a setting or a file, or an error of the
    system; 130 stopped by Ctrl-C or SIGTERM.

    Args:
        main: the command; its result is the exit code, None stands for 0.
        keep_memory: keep freed memory for the tensors of the next step (`keep_freed_memory`).
    """
    # pycocotools passes an old signature of __array__ to NumPy 2
    warnings.filterwarnings("ignore", message=".*__array__ implementation doesn't accept a copy keyword.*")
    if keep_memory:
        keep_freed_memory(largest_mib=1024, kept_mib=2047)
    threads_print, threading.excepthook = threading.excepthook, _report_thread
    try:
        with interrupts.raised() as signals:
            code = _exit_code(main, signals)
    finally:
        threading.excepthook = threads_print
    sys.exit(code)


def _exit_code(main: Callable[[], int | None], signals: interrupts.Interrupts) -> int:
    """Run a command, and print the error that it ends with."""
    try:
        return main() or 0
    except KeyboardInterrupt as stop:
        signals.over = True
        CONSOLE.print(str(stop) or "stopped", style="yellow", markup=False)
        return interrupts.STOPPED
    except Exception as error:
        stopped, signals.over = signals.seen, True
        known = error if isinstance(error, UserError) else explain(error)
        if known is None and stopped:  # a KeyboardInterrupt that came out of an import as another error
            CONSOLE.print("stopped", style="yellow")
            return interrupts.STOPPED
        if known is None or "--debug" in sys.argv:
            traceback.print_exc()
        if known is None:
            print("error: this is a bug in resnet-backbone: please report it with the traceback above", file=sys.stderr)
            return 1
        print(f"error: {known}", file=sys.stderr)
        return 1 if isinstance(known, FloatingPointError) else 2


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Print the traceback of an error in a thread, unless it is one of the system.

    TensorBoard writes in a thread; the main thread gets the same error from it.
    """
    if not isinstance(failure.exc_value, Exception) or explain(failure.exc_value) is None:
        threading.__excepthook__(failure)
