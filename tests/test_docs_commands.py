"""Options, settings, names, links and files in the documents exist; the README's Python code runs."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tools import cli
from tools.config.classification import ClassifierRunConfig
from tools.config.detection import RunConfig
from tools.config.settings import settings
from tools.data.shapes import generate_shapes
from tools.jobs.detection import training_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIG_CLASSES = {"train_cls": ClassifierRunConfig, "eval_cls": ClassifierRunConfig, "analyse": ClassifierRunConfig}


class Command(NamedTuple):
    location: str
    words: list[str]


def commands() -> list[Command]:
    """All commands in shell blocks and in backticks, without comments."""
    result = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        inline = re.findall(r"`((?:python tools/|torchrun |make )[^`]+)`", text)
        for line in [*blocks.splitlines(), *inline]:
            words = shlex.split(line, comments=True)
            if words and words[0] in ("python", "torchrun", "make"):
                result.append(Command(f"{document.name}: {line.strip()[:70]}", words))
    return result


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.location)
def test_documented_command_uses_existing_options_and_settings(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command.words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert next(word for word in command.words[1:] if "=" not in word) in targets
        return
    scripts = [index for index, word in enumerate(command.words) if word.startswith("tools/")]
    if not scripts:
        pytest.skip("not a command of this project: it prepares data in the development checkout")
    name = Path(command.words[scripts[0]]).stem
    words = command.words[scripts[0] + 1 :]
    if words == ["--help"]:
        assert (ROOT / "tools" / f"{name}.py").is_file()  # test_help_prints_usage_and_the_debug_option runs it
        return
    arguments = parsed_arguments(name, words, monkeypatch)
    known = {setting for setting, _ in settings(CONFIG_CLASSES.get(name, RunConfig))}
    for override in getattr(arguments, "set", []):
        setting = override.partition("=")[0]
        assert any(key == setting or key.startswith(f"{setting}.") or setting == "model" for key in known), setting
    for value in vars(arguments).values():
        if str(value).startswith("configs/") and "{" not in str(value):
            assert (ROOT / str(value)).is_file(), value


class Parsed(Exception):
    """Carries the parsed arguments out of a command before it does anything."""


def parsed_arguments(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments as the command's own parser returns them; the command stops right after parsing."""
    original = argparse.ArgumentParser.parse_args

    def raise_parsed(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Parsed(original(parser, words))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", raise_parsed)
    with pytest.raises(Parsed) as exception:
        importlib.import_module(f"tools.{name}").main()
    return exception.value.args[0]


def test_readme_training_command_gives_a_valid_plan(
    tmp_path: Path, imagenet_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_shapes(tmp_path / "photos", train_images=8, val_images=2, side_px=128, seed=3, workers=1)
    (words,) = [c.words for c in commands() if c.location.startswith("README") and "--weights" in c.words]
    arguments = parsed_arguments("train_det", words[2:], monkeypatch)
    assert arguments.config is None and arguments.data == Path("photos") and arguments.set == []
    weights = str(imagenet_weights / arguments.weights)
    config = training_config(None, tmp_path / arguments.data, weights)
    assert (
        config.data.folder == tmp_path / "photos"
        and config.backbone_weights == weights
        and config.model.mask is not None
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_help_prints_usage_and_the_debug_option(name: str) -> None:
    source = (ROOT / "tools" / f"{name}.py").read_text()
    if "cli.run(main)" not in source:
        pytest.skip(f"tools/{name}.py is not a command")
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "usage:" in result.stdout and "--debug" in result.stdout
    assert len(max(result.stdout.splitlines(), key=len)) < 400


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_names_imported_in_python_blocks_exist(document: Path) -> None:
    for block in python_blocks(document):
        for node in ast.walk(ast.parse(block)):
            if (
                isinstance(node, ast.ImportFrom)
                and node.module
                and node.module.split(".")[0] in ("resnet_backbone", "heads", "tools")
            ):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_readme_library_block_runs_with_a_local_file(
    imagenet_weights: Path, coco_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local file replaces the backbone's download; the published detector, which is not available, is left out."""
    block = next(b for b in python_blocks(ROOT / "README.md") if "build_detector" in b)
    block = block.split("# a published detector")[0]
    weights = str(imagenet_weights / "resnet50-imagenet.pth")
    assert 'weights="imagenet1k_v1"' in block and '"photo.jpg"' in block
    block = block.replace('weights="imagenet1k_v1"', f'weights={weights!r}, source="torchvision"')
    photo = str(sorted((coco_mini / "val2017").glob("*.jpg"))[0])
    names: dict[str, Any] = {}
    exec(compile(block.replace('"photo.jpg"', repr(photo)), "README.md", "exec"), names)
    assert tuple(names["features"]["c5"].shape) == (1, 2048, 7, 7)
    assert names["detections"].boxes.shape[1] == 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in filter(None, links):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"`((?:tests|tools|heads|resnet_backbone|docs|configs|examples)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or document.name == "CHANGELOG.md", path


def test_user_error_prints_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file gives one line on stderr and no traceback."""
    from resnet_backbone.errors import MissingFile

    def command() -> int:
        raise MissingFile("no weights at model.pth: give the path of a file")

    with pytest.raises(SystemExit) as exception:
        cli.run(command)
    assert (
        exception.value.code == 2
        and capsys.readouterr().err == "error: no weights at model.pth: give the path of a file\n"
    )
