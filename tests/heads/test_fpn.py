"""FeaturePyramid against torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from heads.fpn import FeaturePyramid
from resnet_backbone import FeatureSpec

SPECS = {f"c{i}": FeatureSpec(channels, 2**i) for i, channels in ((2, 8), (3, 12), (4, 16), (5, 20))}


def features(height: int, width: int) -> dict[str, Tensor]:
    return {
        level: torch.randn(2, spec.channels, math.ceil(height / spec.stride), math.ceil(width / spec.stride))
        for level, spec in SPECS.items()
    }


@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 97), (33, 1), (32, 160)])
def test_levels_are_torchvisions_at_even_and_odd_sizes(height: int, width: int) -> None:
    ours = FeaturePyramid(SPECS, channels=6)
    theirs = tv.FeaturePyramidNetwork([s.channels for s in SPECS.values()], 6, extra_blocks=LastLevelMaxPool())
    for i, level in enumerate(SPECS):
        for mine, its in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
            torch.nn.init.normal_(mine[level].get_parameter("bias"))
            its[i][0].load_state_dict(mine[level].state_dict())
    given = features(height, width)
    want = theirs(dict(given))
    found = ours(given)
    assert list(found) == ["p2", "p3", "p4", "p5", "p6"]
    for mine, its in zip(found.values(), want.values()):
        torch.testing.assert_close(mine, its)


def test_feature_specs_say_the_shapes() -> None:
    neck = FeaturePyramid(SPECS, channels=6)
    for level, feature in neck(features(63, 97)).items():
        spec = neck.feature_specs[level]
        assert feature.shape == (2, 6, math.ceil(63 / spec.stride), math.ceil(97 / spec.stride))


def test_a_pyramid_of_fewer_levels_does_not_read_the_others() -> None:
    neck = FeaturePyramid(SPECS, levels=("c3", "c4"), channels=6)
    given = features(64, 64)
    found = neck({"c3": given["c3"], "c4": given["c4"]})
    assert list(found) == list(neck.feature_specs) == ["p3", "p4", "p5"]
    assert [neck.feature_specs[level].stride for level in found] == [8, 16, 32]


def test_every_level_reaches_the_finest_one() -> None:
    given = {level: x.requires_grad_() for level, x in features(64, 64).items()}
    FeaturePyramid(SPECS, channels=6)(given)["p2"].sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in given.values())


def test_a_missing_level_says_the_mend() -> None:
    with pytest.raises(ValueError, match=r'P2 needs C2, the backbone gives \[\'c3\', \'c4\'\]: add "c2" to out_levels'):
        FeaturePyramid({level: SPECS[level] for level in ("c3", "c4")})
