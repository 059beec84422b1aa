"""A narrow bottleneck net with random values in all tensors, so that tests detect swapped tensors."""

from __future__ import annotations

import pytest
import torch

from resnet_backbone import ResNetClassifier, ResNetSpec
from resnet_backbone.blocks import Bottleneck

NARROW = ResNetSpec(Bottleneck, (2, 1, 2, 1), widths=(4, 8, 8, 16))


def scrambled(net: ResNetClassifier) -> ResNetClassifier:
    """The net in eval mode with random values in all floating-point tensors."""
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if "running_var" in key else torch.randn(value.shape) * 0.2)
    return net.eval()


@pytest.fixture
def narrow() -> ResNetClassifier:
    return scrambled(ResNetClassifier(NARROW, num_classes=5))
