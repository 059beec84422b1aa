"""What the training loop does not know of a run: what a batch means to its model, and what a file of it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.detector import RCNN
from heads.files import detector_content
from heads.recipes import DetectorRecipe
from heads.structures import ImageBatch
from resnet_backbone import Preprocess, ResNetClassifier
from resnet_backbone.build import net_content


class TrainBatch(Protocol):
    """images: n of (3, h, w) uint8 RGB; targets: n of what the task learns from."""

    images: list[Tensor]
    targets: list[Any]
    image_ids: list[int]
    skipped: list[str]


@dataclass(frozen=True)
class Outcome:
    """losses: their sum is minimised; figures: what the log shows beside them."""

    losses: Mapping[str, Tensor]
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Task(Protocol):
    def outcome(self, model: nn.Module, batch: TrainBatch, device: torch.device) -> Outcome: ...

    def content(self, model: nn.Module) -> dict[str, Any]:
        """Of a checkpoint: "model" and "meta", from which the model can be built again."""


@dataclass(frozen=True)
class Detection:
    """An `RCNN`, its recipe, and its pixels."""

    recipe: DetectorRecipe
    preprocess: Preprocess

    def outcome(self, model: nn.Module, batch: TrainBatch, device: torch.device) -> Outcome:
        images = [image.to(device, non_blocking=True) for image in batch.images]
        targets = [target.to(device) for target in batch.targets]
        return Outcome(model(ImageBatch.from_images(images, self.preprocess), targets))

    def content(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, RCNN)
        return detector_content(model, self.recipe)


@dataclass(frozen=True)
class Classification:
    """A `ResNetClassifier`, its pixels, and its classes. Targets are labels; the loss is the cross-entropy, in nats."""

    preprocess: Preprocess
    class_names: Sequence[str]

    def outcome(self, model: nn.Module, batch: TrainBatch, device: torch.device) -> Outcome:
        pixels = self.preprocess.normalise(torch.stack(batch.images).to(device, non_blocking=True))
        labels = torch.tensor(batch.targets, device=device)
        logits = model(pixels.contiguous(memory_format=torch.channels_last)).float()
        error = (logits.detach().argmax(1) != labels).float().mean()
        return Outcome({"loss_cls": F.cross_entropy(logits, labels)}, {"train_error": error})

    def content(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, ResNetClassifier)
        return net_content(model, source="trained here", kind="classifier", class_names=list(self.class_names))
