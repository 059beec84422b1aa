"""Parameters and multiply-adds of a net, beside the paper's tables 1 and 6."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from resnet_backbone import ResNetClassifier
from resnet_backbone.blocks import Bottleneck
from resnet_backbone.specs import find_spec

# the paper's figures: multiply-adds of one 224x224 image (table 1, and figure 3's caption), parameters (table 6)
PAPER_MULTIPLY_ADDS = {
    "plain34": 3.6e9, "resnet18": 1.8e9, "resnet34": 3.6e9, "resnet50": 3.8e9, "resnet101": 7.6e9, "resnet152": 11.3e9,
}  # fmt: skip
PAPER_PARAMETERS = {
    "resnet20_cifar": 0.27e6, "resnet32_cifar": 0.46e6, "resnet44_cifar": 0.66e6, "resnet56_cifar": 0.85e6,
    "resnet110_cifar": 1.7e6, "resnet1202_cifar": 19.4e6,
}  # fmt: skip


@dataclass(frozen=True)
class NetCounts:
    """parameters: trainable values; multiply_adds: of the convolutions and the linear layer for one image (224x224, or
    32x32 for the CIFAR nets), as the paper counts them; paper_*: its figures, where it gives one."""

    net: str
    parameters: int
    multiply_adds: int
    paper_parameters: float | None
    paper_multiply_adds: float | None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def count(name: str) -> NetCounts:
    """A row of `RESNETS`, with the paper's stride (on a bottleneck's first 1x1). Nothing is computed: meta tensors.
    Raises ValueError for an unknown name."""
    spec = find_spec(name)
    cifar = spec.stem == "cifar"
    if issubclass(spec.block, Bottleneck):
        spec = replace(spec, stride_on="1x1")
    side = 32 if cifar else 224
    with torch.device("meta"):
        net = ResNetClassifier(spec, num_classes=10 if cifar else 1000).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, side, side))
    parameters = sum(p.numel() for p in net.parameters())
    # torch counts a multiplication and an addition as two
    operations = counter.get_total_flops() // 2
    return NetCounts(name, parameters, operations, PAPER_PARAMETERS.get(name), PAPER_MULTIPLY_ADDS.get(name))
