"""`RESNETS` against torchvision's nets and the tables of the ResNet paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

from resnet_backbone import RESNETS, ResNetClassifier, ResNetSpec
from resnet_backbone.blocks import BasicBlock, Bottleneck, PlainBasicBlock

IMAGENET_NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def test_blocks_and_depths_are_those_of_table_1() -> None:
    rows = {name: (RESNETS[name].block, RESNETS[name].depths) for name in IMAGENET_NETS}
    assert rows == {
        "resnet18": (BasicBlock, (2, 2, 2, 2)),
        "resnet34": (BasicBlock, (3, 4, 6, 3)),
        "resnet50": (Bottleneck, (3, 4, 6, 3)),
        "resnet101": (Bottleneck, (3, 4, 23, 3)),
        "resnet152": (Bottleneck, (3, 8, 36, 3)),
    }


@pytest.mark.parametrize("name", IMAGENET_NETS)
def test_keys_and_shapes_equal_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours, reference = ResNetClassifier(name), torchvision.models.get_model(name, weights=None)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_cifar_nets_have_the_parameter_counts_of_table_6(depth: int, millions: float) -> None:
    with torch.device("meta"):
        net = ResNetClassifier(f"resnet{depth}_cifar", num_classes=10)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("name", [name for name in RESNETS if name.startswith("plain")])
def test_plain_net_equals_the_net_with_shortcut_a_without_its_shortcuts(name: str) -> None:
    """The same keys and, with the shortcuts removed from the residual net, the same outputs bit for bit."""
    residual_name = name.replace("plain", "resnet")
    residual_name = residual_name if residual_name.endswith("_cifar") else f"{residual_name}_a"
    plain, residual = (ResNetClassifier(row, num_classes=10).eval() for row in (name, residual_name))
    residual.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 48, 48)
    assert not torch.allclose(plain(pixels), residual(pixels), rtol=0.1)
    for module in residual.modules():
        if isinstance(module, BasicBlock):
            module.forward = PlainBasicBlock.forward.__get__(module)  # type: ignore[method-assign, assignment, arg-type]
    assert torch.equal(plain(pixels), residual(pixels))


@pytest.mark.parametrize(("name", "a", "b", "c"), [("resnet18", 0, 3, 8), ("resnet34", 0, 3, 16)])
def test_shortcut_a_has_no_projections_b_has_three_and_c_one_per_block(name: str, a: int, b: int, c: int) -> None:
    for row, projections in ((f"{name}_a", a), (name, b), (f"{name}_c", c)):
        with torch.device("meta"):
            keys = ResNetClassifier(row).state_dict()
        assert sum(key.endswith("downsample.0.weight") for key in keys) == projections


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_shortcut_a_has_no_projections_b_has_two_and_c_one_per_block(depth: int) -> None:
    for suffix, projections in (("", 0), ("_b", 2), ("_c", (depth - 2) // 2)):
        with torch.device("meta"):
            keys = ResNetClassifier(f"resnet{depth}_cifar{suffix}").state_dict()
        assert sum(key.endswith("downsample.0.weight") for key in keys) == projections


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_number_of_weighted_layers_of_cifar_nets_is_the_one_in_the_name(depth: int) -> None:
    assert sum(RESNETS[f"resnet{depth}_cifar"].depths) * 2 + 2 == depth


def test_c5_dilation_replaces_the_stride_of_the_last_stage() -> None:
    stages = ResNetSpec(Bottleneck, (3, 4, 6, 3), c5_dilation=2).stages
    assert [(s.level, s.stride, s.dilation) for s in stages] == [("c2", 1, 1), ("c3", 2, 1), ("c4", 2, 1), ("c5", 1, 2)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (2, 2)}, "same length"),
        ({"depths": (), "widths": ()}, "1 to 4"),
        ({"depths": (1,) * 5, "widths": (64,) * 5}, "1 to 4"),
        ({"depths": (2, 2, 2, 0)}, "at least one"),
        ({"widths": (64, 128, 256, -1)}, "at least one"),
        ({"shortcut": "E"}, "shortcut='E' is unknown: give one of A, B, C, D"),
        ({"shortcut": "AB"}, "shortcut='AB' is unknown"),
        ({"shortcut": ""}, "shortcut='' is unknown"),
        ({"stride_on": "5x5"}, "stride_on='5x5' is unknown: give one of 3x3, 1x1"),
        ({"stride_on": "1x1"}, "needs a bottleneck, BasicBlock has no 1x1"),
        ({"block": PlainBasicBlock, "zero_init_last_norm": True}, "gives a plain net zero outputs"),
        ({"stem": "patch"}, "give one of imagenet, deep, cifar"),
        ({"c5_dilation": 4}, "give one of 1, 2"),
        ({"depths": (1, 1), "widths": (8, 16), "c5_dilation": 2}, "needs a fourth stage, this net has 2"),
    ],
)
def test_invalid_spec_is_refused_with_the_fix(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetSpec(**{"block": BasicBlock, "depths": (2, 2, 2, 2), **fields})
