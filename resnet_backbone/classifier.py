"""ResNetClassifier: pooling and a linear layer on the same stages, for pretraining and for checking weights."""

from __future__ import annotations

from torch import Tensor, nn

from .backbone import ResNetBody
from .specs import ResNetSpec, find_spec


class ResNetClassifier(ResNetBody):
    """pixels (N, 3, H, W) -> logits (N, num_classes), with torchvision's key names (`fc.weight`).

    Args: name: a row of `RESNETS` or a `ResNetSpec`; num_classes; norm and frozen_stages as for `ResNetBackbone`.
    """

    def __init__(
        self, name: str | ResNetSpec, *, num_classes: int = 1000, norm: str = "bn", frozen_stages: int = 0
    ) -> None:
        spec = find_spec(name)
        super().__init__(spec, norm=norm, out_levels=[spec.stages[-1].level], frozen_stages=frozen_stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.feature_specs[self.out_levels[-1]].channels, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        deepest = self.levels(pixels)[self.out_levels[-1]]
        return self.fc(self.avgpool(deepest).flatten(1))
