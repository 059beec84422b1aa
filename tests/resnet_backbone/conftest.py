"""Weights of three nets, and real images."""

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
    """(count, height, width) -> (count, 3, height, width): normalised photographs, stretched to that size."""

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
    """ImageNet weights of ResNet-18 and -50; random weights of ResNet-101 with the statistics of real images."""
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
    known = {name: imagenet_weights / f"{name}-imagenet.pth" for name in ("resnet18", "resnet50")}
    return {**known, "resnet101": path}
