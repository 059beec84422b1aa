"""How commands show errors, their exit codes, and the settings in their help texts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from resnet_backbone.errors import InvalidValue
from tests.tools.conftest import Said
from tools import train_det
from tools.config.detection import RunConfig
from tools.config.recipe_help import DESCRIPTIONS, EXAMPLE
from tools.config.settings import settings
from tools.engine.train import NonFiniteLoss, Stopped

Call = Callable[..., Said]


def command_that_raises(error: BaseException) -> Any:
    """A stand-in for the module of a command."""

    def main() -> int:
        raise error

    return SimpleNamespace(__name__="command", main=main)


@pytest.mark.parametrize(
    ("error", "code", "shows_traceback"),
    [
        (InvalidValue("lr=0: give a positive number"), 2, False),
        (NonFiniteLoss("step 3: a loss is not finite"), 1, False),
        (ValueError("a bug"), 1, True),
        (AssertionError(), 1, True),
        (FileNotFoundError("a bug"), 1, True),
    ],
)
def test_mistakes_of_the_user_are_one_line_and_bugs_a_traceback(
    error: Exception, code: int, shows_traceback: bool, call: Call
) -> None:
    printed = call(command_that_raises(error))
    assert printed.code == code and ("Traceback" in printed.err) == shows_traceback
    if not shows_traceback:
        assert printed.err == f"error: {error}\n"
    else:
        assert type(error).__name__ in printed.err and "bug in resnet-backbone: please report it" in printed.err
    assert printed.out == ""


def test_debug_adds_the_traceback_to_a_mistake_of_the_user(call: Call) -> None:
    printed = call(command_that_raises(InvalidValue("lr=0: give a positive number")), "--debug")
    assert printed.code == 2 and printed.err.startswith("Traceback")
    assert printed.err.endswith("error: lr=0: give a positive number\n")


@pytest.mark.parametrize(
    ("stop", "message"),
    [(KeyboardInterrupt(), "stopped"), (Stopped("stopped at step 3 [of 6]"), "stopped at step 3 [of 6]")],
)
def test_a_stop_on_request_exits_with_130(stop: KeyboardInterrupt, message: str, call: Call) -> None:
    printed = call(command_that_raises(stop))
    assert (printed.code, printed.out, printed.err) == (130, message, "")


def test_success_is_zero_and_a_failed_check_is_the_commands_own_code(call: Call) -> None:
    for result, code in ((None, 0), (0, 0), (1, 1)):
        assert call(SimpleNamespace(__name__="command", main=lambda result=result: result)).code == code


def test_the_help_describes_every_setting_of_a_recipe_with_the_default_of_a_named_recipe() -> None:
    rows = {name.removeprefix("model."): text for name, text in settings(RunConfig) if name.startswith("model.")}
    assert set(rows) == {"recipe", *DESCRIPTIONS}
    for name, description in DESCRIPTIONS.items():
        assert len(description) > 8 and rows[name].endswith(f"; {description}")
        assert f" in {EXAMPLE}; " in rows[name] or rows[name].startswith("see below; "), name
    assert rows["pyramid_channels"].startswith(f"256 in {EXAMPLE}; ") and EXAMPLE in rows["recipe"]


def test_the_help_of_a_training_command_lists_settings_and_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_det.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        train_det.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    for line in ("checkpoints/last.pt", "model.safetensors", "optimiser.lr", "model.rpn.nms_iou", "--debug"):
        assert f"\n  {line} " in printed


def test_a_stop_that_an_import_turned_into_another_error_is_a_stop(call: Call) -> None:
    def main() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy failed to import") from None
        return 0

    printed = call(SimpleNamespace(__name__="command", main=main))
    assert (printed.code, printed.out, printed.err) == (130, "stopped", "")
