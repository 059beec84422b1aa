"""The figures in docs/paper.md equal the committed data, and the data equals the committed logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from resnet_backbone import RESNETS
from tools.config.classification import ClassifierRunConfig
from tools.config.settings import settings

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "paper.md").read_text(encoding="utf-8")
CURVES = json.loads((DOCS / "paper" / "curves.json").read_text(encoding="utf-8"))
TITLES = {"plain20": "plain-20", "plain56": "plain-56", "resnet20": "ResNet-20", "resnet56": "ResNet-56"}


def finals(net: str, key: str) -> list[float]:
    """Final figures of the seeds, in their order."""
    return [run["final"][key] for run in CURVES[f"{net}_cifar"]]


@pytest.mark.parametrize("net", list(TITLES))
def test_the_degradation_table_equals_the_data(net: str) -> None:
    loss, train, test = (finals(net, f"{key}") for key in ("train_loss", "train_error", "test_error"))
    assert len(loss) == 2
    cells = [
        ", ".join(f"{x:.4f}" for x in loss),
        ", ".join(f"{100 * x:.2f}" for x in train),
        ", ".join(f"{100 * x:.2f}" for x in test),
    ]
    assert f"| {TITLES[net]} | {' | '.join(cells)} |" in TEXT


@pytest.mark.parametrize("net", list(TITLES))
def test_the_data_equals_the_logs(net: str) -> None:
    for seed in (0, 1):
        lines = (DOCS / "paper" / "logs" / f"{net}_seed{seed}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        last = [row for row in rows if row["kind"] == "val"][-1]
        assert last["step"] == 7000 and last["error"] == finals(net, "test_error")[seed]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_the_nets_is_the_papers(seed: int) -> None:
    for key in ("train_loss", "train_error"):
        plain20, plain56, resnet20, resnet56 = (finals(net, key)[seed] for net in TITLES)
        assert plain56 > plain20 and resnet56 < plain56 and resnet56 <= resnet20


def test_nets_configurations_files_and_tests_that_are_named_exist() -> None:
    nets = re.findall(r"`((?:resnet|plain)\d+(?:_cifar)?(?:_[abc])?)`", TEXT)
    assert len(nets) > 20 and set(nets) <= set(RESNETS)
    root = DOCS.parent
    for config in re.findall(r"[a-z0-9_]+\.yaml", TEXT):
        assert (root / "configs" / config).is_file(), config
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (DOCS / path).exists(), path
    for test in re.findall(r"`(tests/[\w/]+\.py)`", TEXT):
        assert (root / test).is_file(), test


def test_settings_that_are_named_exist() -> None:
    names = {name for name, _ in settings(ClassifierRunConfig)} | {"model"}
    named = re.findall(r"--set ([\w.]+)=", TEXT) + re.findall(r"`((?:model|data|eval|schedule)\.\w+)", TEXT)
    assert len(named) > 10 and set(named) <= names
