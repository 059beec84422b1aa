"""What depends on the kind of model that is trained: its loss, and the content of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.detector import RCNN, check_targets
from heads.files import detector_content, save_detector
from heads.recipes import DetectorRecipe
from heads.structures import ImageBatch
from heads.transfer import send
from resnet_backbone import Preprocess, ResNetClassifier
from resnet_backbone.build import certified_content, net_content
from resnet_backbone.weights.read import save_atomically

SOURCE = "trained here"  # the source of the weights in the files of a run


class TrainBatch(Protocol):
    """A batch of n images."""

    @property
    def images(self) -> list[Tensor]:
        """The images: n of (3, h, w) uint8 RGB."""

    @property
    def targets(self) -> list[Any]:
        """What the task learns from: n."""

    @property
    def image_ids(self) -> list[int | str]:
        """The image ids: n."""

    @property
    def skipped(self) -> list[str]:
        """Messages about images that were replaced."""


@dataclass(frozen=True)
class Outcome:
    """The result of a forward pass.

    Attributes:
        losses: scalars by name; their sum is minimised.
        figures: scalars that the log shows beside the losses.
    """

    losses: Mapping[str, Tensor]
    figures: Mapping[str, Tensor] = field(default_factory=dict)


class Task(Protocol):
    """What the training loop needs to know of a kind of model."""

    def outcome(self, model: nn.Module, batch: TrainBatch, device: torch.device) -> Outcome:
        """Run the model on a batch.

        Args:
            model: the model, as accelerate prepared it.
            batch: the batch, on the CPU.
            device: the device of the model.

        Returns:
            Losses, with their graphs, and figures.
        """

    def content(self, model: nn.Module) -> dict[str, Any]:
        """The content of a checkpoint, from which the model can be built again; it has no certificate.

        Args:
            model: the model itself.

        Returns:
            {"model": tensors, "meta": metadata}.
        """

    def save(self, model: nn.Module, path: Path) -> None:
        """Write the certified file of the trained model. The model runs once, for its fingerprint.

        Args:
            model: the model itself.
            path: the file.
        """


@dataclass(frozen=True)
class Detection:
    """Training of an `RCNN`.

    Attributes:
        recipe: what the detector was built from.
        preprocess: its pixel format.
        num_classes: K, its classes.
    """

    recipe: DetectorRecipe
    preprocess: Preprocess
    num_classes: int

    def outcome(self, model: nn.Module, batch: TrainBatch, device: torch.device) -> Outcome:
        """The detector's own losses; targets are `Targets`."""
        check_targets(batch.targets, self.num_classes, len(batch.images))  # here, where nothing waits for a GPU
        images = [image.to(device, non_blocking=True) for image in batch.images]
        targets = [target.to(device, non_blocking=True) for target in batch.targets]
        return Outcome(model(ImageBatch.from_images(images, self.preprocess), targets))

    def content(self, model: nn.Module) -> dict[str, Any]:
        """Tensors, recipe, class names and pixel format."""
        assert isinstance(model, RCNN)
        return detector_content(model, self.recipe, source=SOURCE)

    def save(self, model: nn.Module, path: Path) -> None:
        """As `heads.files.save_detector`."""
        assert isinstance(model, RCNN)
        save_detector(model, self.recipe, path, source=SOURCE)


@dataclass(frozen=True)
class Classification:
    """Training of a `ResNetClassifier`.

    Attributes:
        preprocess: its pixel format.
        class_names: names of the classes, in the order of their labels.
    """

    preprocess: Preprocess
    class_names: Sequence[str]

    def outcome(self, model: nn.Module, batch: TrainBatch, device: torch.device) -> Outcome:
        """Cross-entropy in nats, and the training error; targets are labels."""
        pixels = self.preprocess.normalise(send(torch.stack(batch.images), device))
        labels = send(torch.tensor(batch.targets), device)
        logits = model(pixels.contiguous(memory_format=torch.channels_last)).float()
        error = (logits.detach().argmax(1) != labels).float().mean()
        return Outcome({"loss_cls": F.cross_entropy(logits, labels)}, {"train_error": error})

    def content(self, model: nn.Module) -> dict[str, Any]:
        """Tensors, architecture, class names and pixel format."""
        assert isinstance(model, ResNetClassifier)
        return net_content(model, source=SOURCE, kind="classifier", class_names=list(self.class_names))

    def save(self, model: nn.Module, path: Path) -> None:
        """As `resnet_backbone.build.save_weights`, with the class names."""
        assert isinstance(model, ResNetClassifier)
        names = list(self.class_names)
        save_atomically(certified_content(model, source=SOURCE, kind="classifier", class_names=names), path)
