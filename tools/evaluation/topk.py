"""A classifier's figures: top-1 and top-5, cross-entropy, and what was taken for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from resnet_backbone.errors import InvalidValue


@dataclass(frozen=True)
class ClassScores:
    """top1, top5: images whose label is among the first so many; cross_entropy: mean, in nats, of the (view-averaged)
    probabilities; confusion: (K, K), true class by predicted class; class_names: K."""

    images: int
    top1: int
    top5: int
    cross_entropy: float
    confusion: np.ndarray
    class_names: tuple[str, ...]

    @property
    def error(self) -> float:
        """Of the first guess, a fraction."""
        return 1 - self.top1 / self.images

    def to_json(self) -> dict[str, Any]:
        hits, counts = np.diag(self.confusion), self.confusion.sum(1)
        recall = {n: int(h) / int(c) for n, h, c in zip(self.class_names, hits, counts) if c}
        return {
            "images": self.images,
            "top1": self.top1,
            "top5": self.top5,
            "top1_accuracy": self.top1 / self.images,
            "top5_accuracy": self.top5 / self.images,
            "cross_entropy": self.cross_entropy,
            "recall_by_class": recall,
        }


def score_labels(probabilities: Tensor, labels: Sequence[int], class_names: Sequence[str]) -> ClassScores:
    """probabilities: (N, K); labels: N of 0..K-1. A tie counts against the label, so that a net that says the same of
    every class scores nothing. Raises ValueError for shapes that do not fit, or probabilities that are not finite."""
    count = len(labels)
    if probabilities.shape != (count, len(class_names)) or not count:
        raise InvalidValue(
            f"{tuple(probabilities.shape)} probabilities for {count} labels of {len(class_names)} classes: "
            "a row an image and a column a class are wanted"
        )
    if not bool(probabilities.isfinite().all()):
        raise InvalidValue("probabilities are not finite: the net's weights or its images are broken")
    truth = torch.tensor(labels)
    own = probabilities.gather(1, truth[:, None])
    rank = (probabilities >= own).sum(1) - 1
    guess = probabilities.argmax(1)
    k = len(class_names)
    confusion = torch.bincount(truth * k + guess, minlength=k * k).reshape(k, k).numpy()
    entropy = -own.double().clamp(min=1e-38).log().mean()
    return ClassScores(
        count, int((rank < 1).sum()), int((rank < 5).sum()), float(entropy), confusion, tuple(class_names)
    )


def classes_table(scores: ClassScores, title: str) -> Table:
    """The figures, and of at most twenty classes (the worst) how many were found and what they were taken for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    for name, justify in (("", "left"), ("right", "right"), ("of", "right"), ("%", "right"), ("taken for", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    rows: Mapping[str, int] = {"top-1": scores.top1, "top-5": scores.top5}
    for name, right in rows.items():
        table.add_row(name, f"{right:,}", f"{scores.images:,}", f"{100 * right / scores.images:.2f}", "", style="bold")
    hits, counts = np.diag(scores.confusion), scores.confusion.sum(1)
    present = [i for i in np.argsort(hits / np.maximum(counts, 1), kind="stable") if counts[i]]
    for i in present[:20] if counts.max() > 1 else []:
        wrong = scores.confusion[i].copy()
        wrong[i] = 0
        worst = f"{escape(scores.class_names[wrong.argmax()])} {wrong.max()}" if wrong.max() else ""
        share = f"{100 * hits[i] / counts[i]:.1f}"
        table.add_row(escape(scores.class_names[i]), f"{hits[i]:,}", f"{counts[i]:,}", share, worst)
    return table
