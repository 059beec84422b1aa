"""`ResNetClassifier` against torchvision's ResNet; accuracies are tested in tests/tools/test_cls_published.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_backbone import Preprocess, ResNetClassifier, load_weights


@torch.inference_mode()
def test_logits_of_a_photograph_equal_torchvisions(imagenet_weights: Path, shared: Path) -> None:
    state = torch.load(imagenet_weights / "resnet18-imagenet.pth", weights_only=True)
    ours, reference = ResNetClassifier("resnet18").eval(), torchvision.models.resnet18(weights=None).eval()
    load_weights(ours, state)
    reference.load_state_dict(state)
    path = sorted((shared / "data" / "imagenet-sample").glob("*/*.jpg"))[7]
    image = np.asarray(Image.open(path).convert("RGB"))
    pixels = Preprocess().normalise(torch.tensor(image).permute(2, 0, 1))[None]
    torch.testing.assert_close(ours(pixels), reference(pixels), rtol=1e-5, atol=1e-4)


def test_error_for_an_unknown_net_suggests_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="no ResNet is called 'resnet20-cifar': did you mean 'resnet20_cifar'"):
        ResNetClassifier("resnet20-cifar")
