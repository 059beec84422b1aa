"""The classifier against torchvision's; its counts on real images are taken in tests/tools/test_cls_commands.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_backbone import Preprocess, ResNetClassifier, load_weights


@torch.inference_mode()
def test_logits_are_torchvisions_on_a_real_image(imagenet_weights: Path, shared: Path) -> None:
    state = torch.load(imagenet_weights / "resnet18-imagenet.pth", weights_only=True)
    ours, theirs = ResNetClassifier("resnet18").eval(), torchvision.models.resnet18(weights=None).eval()
    load_weights(ours, state)
    theirs.load_state_dict(state)
    path = sorted((shared / "data" / "imagenet-sample").glob("*/*.jpg"))[7]
    image = np.asarray(Image.open(path).convert("RGB"))
    pixels = Preprocess().normalise(torch.tensor(image).permute(2, 0, 1))[None]
    torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-5, atol=1e-4)


def test_an_unknown_net_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no ResNet is called 'resnet20-cifar': did you mean 'resnet20_cifar'"):
        ResNetClassifier("resnet20-cifar")
