"""Parameters and multiply-adds of a net, with the figures of the paper (tables 1 and 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from resnet_backbone import ResNetClassifier
from resnet_backbone.blocks import Bottleneck
from resnet_backbone.specs import find_spec

# figures of the paper: multiply-adds for one image of 224x224 px (table 1, caption of figure 3), parameters (table 6)
PAPER_MULTIPLY_ADDS = {
    "plain34": 3.6e9, "resnet18": 1.8e9, "resnet34": 3.6e9, "resnet50": 3.8e9, "resnet101": 7.6e9, "resnet152": 11.3e9,
}  # fmt: skip
PAPER_PARAMETERS = {
    "resnet20_cifar": 0.27e6, "resnet32_cifar": 0.46e6, "resnet44_cifar": 0.66e6, "resnet56_cifar": 0.85e6,
    "resnet110_cifar": 1.7e6, "resnet1202_cifar": 19.4e6,
}  # fmt: skip


@dataclass(frozen=True)
class NetCounts:
    """Size and cost of a net.

    Attributes:
        net: row of `RESNETS`.
        parameters: number of trainable values.
        multiply_adds: multiply-adds of the convolutions and the linear layer for one image of 224x224 px, or 32x32 px
            for the CIFAR nets, as the paper counts them.
        paper_parameters: the figure of the paper, None if it gives none.
        paper_multiply_adds: the figure of the paper, None if it gives none.
    """

    net: str
    parameters: int
    multiply_adds: int
    paper_parameters: float | None
    paper_multiply_adds: float | None

    def to_json(self) -> dict[str, Any]:
        """The attributes as a dict."""
        return dict(vars(self))


def count(name: str) -> NetCounts:
    """Count parameters and multiply-adds of a net.

    A bottleneck has the stride on its first 1x1 convolution, as in the paper. The net is built on the meta device, so
    nothing is computed.

    Args:
        name: row of `RESNETS`.

    Returns:
        The counts, with the figures of the paper.

    Raises:
        InvalidValue: no such row.
    """
    # not at the top: it imports triton, and `--help` does not need it
    from torch.utils.flop_counter import FlopCounterMode

    spec = find_spec(name)
    cifar = spec.stem == "cifar"
    if issubclass(spec.block, Bottleneck):
        spec = replace(spec, stride_on="1x1")
    side_px = 32 if cifar else 224
    with torch.device("meta"):
        net = ResNetClassifier(spec, num_classes=10 if cifar else 1000).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, side_px, side_px))
    parameters = sum(p.numel() for p in net.parameters())
    # FlopCounterMode counts a multiply-add as two operations
    multiply_adds = counter.get_total_flops() // 2
    return NetCounts(name, parameters, multiply_adds, PAPER_PARAMETERS.get(name), PAPER_MULTIPLY_ADDS.get(name))
