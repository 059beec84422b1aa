"""Parameters equal torchvision's; parameters and multiply-adds agree with the paper's tables 1 and 6."""

from __future__ import annotations

import pytest
import torchvision

from resnet_backbone import RESNETS
from resnet_backbone.blocks import Bottleneck
from tools.evaluation.counts import PAPER_MULTIPLY_ADDS, PAPER_PARAMETERS, count


def multiply_adds_of(name: str) -> int:
    """Multiply-adds computed from the spec: k * k * cin * cout for every position of the output of a convolution."""
    spec = RESNETS[name]
    side, channels, total = (32, 16, 9 * 3 * 16 * 32**2) if spec.stem == "cifar" else (56, 64, 49 * 3 * 64 * 112**2)
    expansion = spec.block.expansion
    for index, stage in enumerate(spec.stages):
        for block in range(stage.blocks):
            stride = 2 if block == 0 and index > 0 else 1
            side //= stride
            width, cout = stage.width, stage.width * expansion
            kernels = [(1, channels, width), (3, width, width), (1, width, cout)]
            kernels = kernels if issubclass(spec.block, Bottleneck) else [(3, channels, width), (3, width, width)]
            total += sum(k * k * cin * cout * side**2 for k, cin, cout in kernels)
            changes = stride > 1 or channels != cout
            if getattr(spec.block, "residual", True) and (spec.shortcut == "C" or (spec.shortcut == "B" and changes)):
                total += channels * cout * side**2
            channels = cout
    return total + channels * (10 if spec.stem == "cifar" else 1000)


@pytest.mark.parametrize("name", [name for name in RESNETS if not name.endswith("d")])
def test_multiply_adds_are_those_of_the_convolutions(name: str) -> None:
    assert count(name).multiply_adds == multiply_adds_of(name)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_parameters_are_torchvisions(name: str) -> None:
    theirs = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert count(name).parameters == theirs


@pytest.mark.parametrize("name", sorted({*PAPER_MULTIPLY_ADDS, *PAPER_PARAMETERS}))
def test_counts_are_within_3_percent_of_the_papers(name: str) -> None:
    counts = count(name)
    if counts.paper_multiply_adds is not None:
        assert counts.multiply_adds == pytest.approx(counts.paper_multiply_adds, rel=0.03)
    if counts.paper_parameters is not None:
        assert counts.parameters == pytest.approx(counts.paper_parameters, rel=0.03)
