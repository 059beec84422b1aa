"""docs/paper.md says what the committed data says, and the data is that of the committed logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from resnet_backbone import RESNETS

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "paper.md").read_text(encoding="utf-8")
CURVES = json.loads((DOCS / "paper" / "curves.json").read_text(encoding="utf-8"))
TITLES = {"plain20": "plain-20", "plain56": "plain-56", "resnet20": "ResNet-20", "resnet56": "ResNet-56"}


def finals(net: str, key: str) -> list[float]:
    """Of the seeds, in their order."""
    return [run["final"][key] for run in CURVES[f"{net}_cifar"]]


@pytest.mark.parametrize("net", list(TITLES))
def test_the_table_of_the_degradation_is_the_datas(net: str) -> None:
    loss, train, test = (finals(net, f"{key}") for key in ("train_loss", "train_error", "test_error"))
    assert len(loss) == 2
    cells = [
        ", ".join(f"{x:.4f}" for x in loss),
        ", ".join(f"{100 * x:.2f}" for x in train),
        ", ".join(f"{100 * x:.2f}" for x in test),
    ]
    assert f"| {TITLES[net]} | {' | '.join(cells)} |" in TEXT


@pytest.mark.parametrize("net", list(TITLES))
def test_the_data_is_the_logs(net: str) -> None:
    for seed in (0, 1):
        lines = (DOCS / "paper" / "logs" / f"{net}_seed{seed}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        last = [row for row in rows if row["kind"] == "val"][-1]
        assert last["step"] == 7000 and last["error"] == finals(net, "test_error")[seed]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_papers_order_holds(seed: int) -> None:
    for key in ("train_loss", "train_error"):
        plain20, plain56, resnet20, resnet56 = (finals(net, key)[seed] for net in TITLES)
        assert plain56 > plain20 and resnet56 < plain56 and resnet56 <= resnet20


def test_nets_configurations_pictures_and_tests_that_are_named_exist() -> None:
    nets = re.findall(r"`((?:resnet|plain)\d+(?:_cifar)?(?:_[abc])?)`", TEXT)
    assert len(nets) > 20 and set(nets) <= set(RESNETS)
    root = DOCS.parent
    for config in re.findall(r"[a-z0-9_]+\.yaml", TEXT):
        assert (root / "configs" / config).is_file(), config
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (DOCS / path).exists(), path
    for test in re.findall(r"`(tests/[\w/]+\.py)`", TEXT):
        assert (root / test).is_file(), test
