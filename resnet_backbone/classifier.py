"""ResNetClassifier: pooling and a linear layer on the same stages, for pretraining and for checking weights."""

from __future__ import annotations

from torch import Tensor, nn

from .backbone import ResNetBody
from .specs import ResNetSpec, find_spec


class ResNetClassifier(ResNetBody):
    """A classifier with torchvision's key names (`fc.weight`).

    Args:
        name: a row of `RESNETS`, or a spec.
        num_classes: number of classes, K.
        norm: as for `ResNetBody`.
        norm_eps: epsilon of the norms.
        frozen_stages: as for `ResNetBody`.

    Raises:
        InvalidValue: an unknown name or norm, or frozen_stages outside 0..5.
    """

    def __init__(
        self,
        name: str | ResNetSpec,
        *,
        num_classes: int = 1000,
        norm: str = "bn",
        norm_eps: float = 1e-5,
        frozen_stages: int = 0,
    ) -> None:
        spec = find_spec(name)
        levels = [spec.stages[-1].level]
        super().__init__(spec, norm=norm, norm_eps=norm_eps, out_levels=levels, frozen_stages=frozen_stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.feature_specs[self.out_levels[-1]].channels, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify images.

        Args:
            pixels: (N, 3, H, W), normalised.

        Returns:
            (N, K) logits.
        """
        deepest = self.levels(pixels)[self.out_levels[-1]]
        logits: Tensor = self.fc(self.avgpool(deepest).flatten(1))
        return logits
