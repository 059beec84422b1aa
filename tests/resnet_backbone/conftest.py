"""Fixtures for the backbone's tests: photographs and weight files of three nets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_backbone import Preprocess, ResNetBackbone
from resnet_backbone.specs import RESNETS


@pytest.fixture(scope="session")
def photos(coco_mini: Path) -> Callable[[int, int, int], Tensor]:
    """A function from (count, height, width) to normalised photographs of that size, (count, 3, height, width)."""

    def read(count: int, height: int, width: int) -> Tensor:
        files = sorted((coco_mini / "val2017").glob("*.jpg"))[:count]
        resized = [Image.open(file).convert("RGB").resize((width, height)) for file in files]
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in resized]
        return torch.stack([Preprocess().normalise(image) for image in pixels])

    return read


@pytest.fixture(scope="session")
def weight_files(
    imagenet_weights: Path, photos: Callable[[int, int, int], Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Files with ImageNet weights of ResNet-18 and -50, and random weights of ResNet-101.

    The running statistics of the ResNet-101 are those of four photographs.
    """
    torch.manual_seed(0)
    net = ResNetBackbone(RESNETS["resnet101"], norm="bn").train()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
            nn.init.uniform_(norm.weight, 0.3, 0.7)
            nn.init.normal_(norm.bias, std=0.1)
    with torch.no_grad():
        net(photos(4, 96, 128))
    path = tmp_path_factory.mktemp("random") / "resnet101.pth"
    torch.save(net.state_dict(), path)
    imagenet = {name: imagenet_weights / f"{name}-imagenet.pth" for name in ("resnet18", "resnet50")}
    return {**imagenet, "resnet101": path}
