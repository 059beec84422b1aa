"""Scores of a classifier equal those of scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import confusion_matrix, log_loss, recall_score, top_k_accuracy_score
from torch import Tensor

from tools.evaluation.topk import ClassScores, classes_table, score_labels


def predictions(images: int, classes: int, seed: int) -> tuple[Tensor, list[int]]:
    """Probabilities of a classifier that is better than chance, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 1.0
    return logits.softmax(1), labels.tolist()


@pytest.mark.parametrize(("images", "classes"), [(1, 7), (50, 6), (400, 10), (1000, 37)])
def test_scores_are_scikit_learns(images: int, classes: int) -> None:
    probabilities, labels = predictions(images, classes, seed=images)
    names = [f"class {i}" for i in range(classes)]
    ours, all_labels = score_labels(probabilities, labels, names), list(range(classes))
    p = probabilities.double().numpy()
    for k, correct in ((1, ours.top1), (5, ours.top5)):
        assert correct == top_k_accuracy_score(labels, p, k=k, labels=all_labels, normalize=False)
    assert ours.error == pytest.approx(1 - top_k_accuracy_score(labels, p, k=1, labels=all_labels))
    p = p / p.sum(1, keepdims=True)
    assert ours.cross_entropy == pytest.approx(log_loss(labels, p, labels=all_labels), rel=1e-5)
    assert np.array_equal(ours.confusion, confusion_matrix(labels, p.argmax(1), labels=all_labels))
    present = sorted(set(labels))
    recalls = recall_score(labels, p.argmax(1), labels=present, average=None, zero_division=0)
    values = json.loads(json.dumps(ours.to_json()))
    assert values["recall_by_class"] == {names[i]: pytest.approx(r) for i, r in zip(present, recalls)}


def test_a_constant_prediction_scores_nothing() -> None:
    scores = score_labels(torch.full((20, 10), 0.1), list(range(10)) * 2, [str(i) for i in range(10)])
    assert (scores.top1, scores.top5) == (0, 0)
    assert scores.cross_entropy == pytest.approx(np.log(10))


def test_the_cross_entropy_of_a_zero_probability_is_finite() -> None:
    scores = score_labels(torch.tensor([[1.0, 0.0]]), [1], ["a", "b"])
    assert scores.top1 == 0 and 50 < scores.cross_entropy < 1000


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.rand(3, 4), [0, 1], "one row per image"),
        (torch.rand(2, 3), [0, 1], "one column per class"),
        (torch.zeros(0, 4), [], "one row per image"),
        (torch.tensor([[float("nan"), 0.1, 0.1, 0.1]]), [0], "not finite"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(probabilities: Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_labels(probabilities, labels, ["a", "b", "c", "d"])


def test_the_table_lists_the_worst_class_first_and_what_it_is_confused_with() -> None:
    confusion = np.array([[9, 1, 0], [0, 2, 8], [0, 0, 10]])
    table = classes_table(ClassScores(30, 21, 30, 0.5, confusion, ("ant", "[bee]", "cow")), "title")
    console = Console(width=100, record=True, quiet=True)
    console.quiet = False
    with console.capture() as printed:
        console.print(table)
    rows = [" ".join(line.split()) for line in printed.get().splitlines()]
    assert "top-1 21 30 70.00" in rows and "[bee] 2 10 20.0 cow 8" in rows and "ant 9 10 90.0 [bee] 1" in rows
    assert rows.index("[bee] 2 10 20.0 cow 8") < rows.index("ant 9 10 90.0 [bee] 1")
