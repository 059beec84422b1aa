"""The table of nets against torchvision's and the paper's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision

from resnet_backbone import RESNETS, ResNetClassifier, ResNetSpec
from resnet_backbone.blocks import BasicBlock, Bottleneck, PlainBasicBlock

IMAGENET_NETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def test_rows_are_the_papers_table_1() -> None:
    rows = {name: (RESNETS[name].block, RESNETS[name].depths) for name in IMAGENET_NETS}
    assert rows == {
        "resnet18": (BasicBlock, (2, 2, 2, 2)),
        "resnet34": (BasicBlock, (3, 4, 6, 3)),
        "resnet50": (Bottleneck, (3, 4, 6, 3)),
        "resnet101": (Bottleneck, (3, 4, 23, 3)),
        "resnet152": (Bottleneck, (3, 8, 36, 3)),
    }


@pytest.mark.parametrize("name", IMAGENET_NETS)
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = ResNetClassifier(name), torchvision.models.get_model(name, weights=None)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_cifar_nets_have_the_parameters_of_table_6(depth: int, millions: float) -> None:
    with torch.device("meta"):
        net = ResNetClassifier(f"resnet{depth}_cifar", num_classes=10)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("name", [name for name in RESNETS if name.startswith("plain")])
def test_a_plain_net_is_its_twin_of_shortcut_a_without_the_shortcuts(name: str) -> None:
    """Same tensors, and the same function once the twin's shortcuts are cut."""
    twin = name.replace("plain", "resnet")
    twin = twin if twin.endswith("_cifar") else f"{twin}_a"
    plain, residual = (ResNetClassifier(row, num_classes=10).eval() for row in (name, twin))
    residual.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 48, 48)
    assert not torch.allclose(plain(pixels), residual(pixels), rtol=0.1)
    for module in residual.modules():
        if isinstance(module, BasicBlock):
            module.forward = PlainBasicBlock.forward.__get__(module)  # type: ignore[method-assign, assignment, arg-type]
    assert torch.equal(plain(pixels), residual(pixels))


@pytest.mark.parametrize(("name", "a", "b", "c"), [("resnet18", 0, 3, 8), ("resnet34", 0, 3, 16)])
def test_shortcuts_a_b_c_project_nowhere_where_the_shape_changes_and_everywhere(
    name: str, a: int, b: int, c: int
) -> None:
    for row, projections in ((f"{name}_a", a), (name, b), (f"{name}_c", c)):
        with torch.device("meta"):
            keys = ResNetClassifier(row).state_dict()
        assert sum(key.endswith("downsample.0.weight") for key in keys) == projections


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_cifar_nets_shortcuts_too(depth: int) -> None:
    for ending, projections in (("", 0), ("_b", 2), ("_c", (depth - 2) // 2)):
        with torch.device("meta"):
            keys = ResNetClassifier(f"resnet{depth}_cifar{ending}").state_dict()
        assert sum(key.endswith("downsample.0.weight") for key in keys) == projections


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_cifar_nets_have_as_many_weighted_layers_as_their_name_says(depth: int) -> None:
    assert sum(RESNETS[f"resnet{depth}_cifar"].depths) * 2 + 2 == depth


def test_stages_of_a_dilated_net_keep_the_stride_in_the_last_one() -> None:
    stages = ResNetSpec(Bottleneck, (3, 4, 6, 3), c5_dilation=2).stages
    assert [(s.level, s.stride, s.dilation) for s in stages] == [("c2", 1, 1), ("c3", 2, 1), ("c4", 2, 1), ("c5", 1, 2)]


@pytest.mark.parametrize(
    ("wrong", "says"),
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
def test_a_wrong_spec_is_refused_with_the_mend(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ResNetSpec(**{"block": BasicBlock, "depths": (2, 2, 2, 2), **wrong})
