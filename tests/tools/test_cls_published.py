"""Scores on real images: published weights, untrained nets, and nets that were trained on shuffled labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnet_backbone import ResNetClassifier
from tests.tools.conftest import Said
from tools import analyse, eval_cls, train_cls
from tools.config.classification import ClassifierRunConfig, load_config
from tools.evaluation.topk import score_labels
from tools.jobs import classification

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[..., Said]
CHANCE = 0.04  # deviation from 10 % that is allowed: four standard deviations over 1,000 images


@pytest.fixture(scope="session")
def cifar(shared: Path) -> tuple[str, ...]:
    """Settings for the CIFAR-10 images in the shared folder."""
    archive = shared / "data" / "cifar10-jpeg.zip"
    return (
        f"data.train={{images: {archive}, part: train}}",
        f"data.val={{images: {archive}, part: test}}",
        "data.keep_decoded=true",
    )


def test_the_deeper_published_net_responds_less(
    shared: Path, cifar: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    """The paper, figure 7: the layers of ResNet-56 have smaller responses than those of ResNet-20."""
    files = shared / "weights" / "cifar"
    published = f"resnet20_cifar={files / 'resnet20-12fca82f.th'}", f"resnet56_cifar={files / 'resnet56-4bfd9763.th'}"
    settings = [word for setting in cifar for word in ("--set", setting)]
    config = ROOT / "configs" / "cifar_paper.yaml"
    said = call(analyse, "responses", *published, "--config", config, "--images", 128, "--out", tmp_path, *settings)
    assert said.code == 0, said.err
    mean = json.loads((tmp_path / "responses.json").read_text())["mean"]
    shallow, deep = (np.array(list(mean[net].values())) for net in ("resnet20_cifar", "resnet56_cifar"))
    assert (len(shallow), len(deep)) == (19, 55)
    assert deep.mean() < 0.75 * shallow.mean() and np.median(deep) < 0.75 * np.median(shallow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "depth", "top1"), [("resnet20-12fca82f.th", 20, 8103), ("resnet56-4bfd9763.th", 56, 8320)]
)
def test_correct_cifar_images_are_as_many_as_stated(
    file: str, depth: int, top1: int, shared: Path, cifar: tuple[str, ...], call: Call, tmp_path: Path
) -> None:
    sets = [p for one in (*cifar, f"model=resnet{depth}_cifar") for p in ("--set", one)]
    weights = shared / "weights" / "cifar" / file
    assert call(eval_cls, weights, ROOT / "configs" / "cifar_paper.yaml", "--out", tmp_path, *sets).code == 0
    assert json.loads((tmp_path / "scores.json").read_text())["top1"] == pytest.approx(top1, abs=3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "top1", "top5"), [("resnet18", 375, 459), ("resnet50", 405, 474)])
def test_correct_imagenet_images_are_as_many_as_stated(
    name: str, top1: int, top5: int, shared: Path, imagenet_weights: Path, call: Call, tmp_path: Path
) -> None:
    sample = shared / "data" / "imagenet-sample"
    sets = (
        f"model={name}", "weights_source=torchvision", "eval.batch_size=20",
        f"data.val={{images: {sample}, class_index: {sample / 'wnid_to_index.json'}}}",
    )  # fmt: skip
    arguments = [p for one in sets for p in ("--set", one)]
    weights = imagenet_weights / f"{name}-imagenet.pth"
    assert call(eval_cls, weights, ROOT / "configs" / "imagenet_paper.yaml", "--out", tmp_path, *arguments).code == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["top1"] == pytest.approx(top1, abs=2) and scores["top5"] == pytest.approx(top5, abs=2)


def accuracy(net: ResNetClassifier, config: ClassifierRunConfig) -> float:
    data = classification.load_val(config)
    probabilities, labels = classification.predict(net, data, config, quiet=True)
    assert len(labels) == 1000
    return 1 - score_labels(probabilities, labels, data.class_names).error


@pytest.mark.parametrize("name", ["resnet20_cifar", "plain20_cifar", "resnet20_cifar_c", "resnet18"])
def test_untrained_nets_are_at_chance(name: str, cifar: tuple[str, ...]) -> None:
    config = load_config(ROOT / "configs" / "cifar_paper.yaml", (*cifar, "data.val.max_images=1000"))
    net = ResNetClassifier(name, num_classes=10)
    assert accuracy(net, config) == pytest.approx(0.1, abs=CHANCE)


@pytest.mark.slow
def test_training_on_shuffled_labels_leaves_the_test_score_at_chance(
    cifar: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    """Sixty steps on 960 images: with their own labels the score is above chance, with shuffled ones it is not."""
    accuracies = {}
    for shuffled in ("false", "true"):
        sets = (
            *cifar, f"data.shuffle_labels={shuffled}", f"out={tmp_path / shuffled}", "data.train.max_images=960",
            "data.val.max_images=1000", "data.workers=0", "schedule={iters: 60, warmup_iters: 0}",
            "train.batch_size=64", "eval.every_epochs=null",
        )  # fmt: skip
        said = call(train_cls, ROOT / "configs" / "cifar_paper.yaml", *(p for one in sets for p in ("--set", one)))
        assert said.code == 0, said.err
        accuracies[shuffled] = json.loads((tmp_path / shuffled / "scores.json").read_text())["top1_accuracy"]
    assert accuracies["true"] == pytest.approx(0.1, abs=CHANCE)
    assert accuracies["false"] > 0.1 + 2 * CHANCE
