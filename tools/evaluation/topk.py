"""Scores of a classifier: top-1 and top-5 accuracy, cross-entropy, and the confusion matrix."""

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
    """Scores over a test set with K classes.

    Attributes:
        images: number of images.
        top1: images with the true class first.
        top5: images with the true class among the first five.
        cross_entropy: mean over the images, in nats, of the probabilities averaged over the crops.
        confusion: (K, K) int64 counts; rows are true classes, columns are predicted ones.
        class_names: K names.
    """

    images: int
    top1: int
    top5: int
    cross_entropy: float
    confusion: np.ndarray
    class_names: tuple[str, ...]

    @property
    def error(self) -> float:
        """Top-1 error, a fraction."""
        return 1 - self.top1 / self.images

    def to_json(self) -> dict[str, Any]:
        """The scores as plain values, with the recall of every class that has images."""
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
    """Score predicted probabilities. Ties count against the true class, so a constant prediction scores nothing.

    Args:
        probabilities: (N, K).
        labels: N true classes, 0..K-1.
        class_names: K names.

    Returns:
        The scores.

    Raises:
        InvalidValue: the shapes do not fit, there are no images, or a probability is not finite.
    """
    count = len(labels)
    if probabilities.shape != (count, len(class_names)) or not count:
        raise InvalidValue(
            f"probabilities of shape {tuple(probabilities.shape)} for {count} labels and {len(class_names)} classes: "
            "give one row per image (at least one) and one column per class"
        )
    if not bool(probabilities.isfinite().all()):
        raise InvalidValue("probabilities are not finite: check the weights for NaN and infinite values")
    target = torch.tensor(labels)
    of_target = probabilities.gather(1, target[:, None])
    rank = (probabilities >= of_target).sum(1) - 1
    predicted = probabilities.argmax(1)
    k = len(class_names)
    confusion = torch.bincount(target * k + predicted, minlength=k * k).reshape(k, k).numpy()
    cross_entropy = -of_target.double().clamp(min=1e-38).log().mean()
    return ClassScores(
        count, int((rank < 1).sum()), int((rank < 5).sum()), float(cross_entropy), confusion, tuple(class_names)
    )


def classes_table(scores: ClassScores, title: str) -> Table:
    """Make a table of the scores for the terminal.

    Args:
        scores: the scores.
        title: title of the table.

    Returns:
        Top-1 and top-5, then the twenty classes with the lowest recall, each with the class that it is confused with
        most often. The classes are left out if none has more than one image.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    columns = (("", "left"), ("correct", "right"), ("of", "right"), ("%", "right"), ("confused with", "left"))
    for name, justify in columns:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    rows: Mapping[str, int] = {"top-1": scores.top1, "top-5": scores.top5}
    for name, hits in rows.items():
        table.add_row(name, f"{hits:,}", f"{scores.images:,}", f"{100 * hits / scores.images:.2f}", "", style="bold")
    hits_by_class, counts = np.diag(scores.confusion), scores.confusion.sum(1)
    present = [i for i in np.argsort(hits_by_class / np.maximum(counts, 1), kind="stable") if counts[i]]
    for i in present[:20] if counts.max() > 1 else []:
        errors = scores.confusion[i].copy()
        errors[i] = 0
        confused = f"{escape(scores.class_names[errors.argmax()])} {errors.max()}" if errors.max() else ""
        recall = f"{100 * hits_by_class[i] / counts[i]:.1f}"
        table.add_row(escape(scores.class_names[i]), f"{hits_by_class[i]:,}", f"{counts[i]:,}", recall, confused)
    return table
