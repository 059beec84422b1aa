"""FeaturePyramid equals torchvision's in its levels, and publishes their shapes."""

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
def test_levels_equal_torchvision_at_even_and_odd_sizes(height: int, width: int) -> None:
    ours = FeaturePyramid(SPECS, channels=6)
    reference = tv.FeaturePyramidNetwork([s.channels for s in SPECS.values()], 6, extra_blocks=LastLevelMaxPool())
    for i, level in enumerate(SPECS):
        for our_layers, reference_layers in (
            (ours.lateral, reference.inner_blocks),
            (ours.output, reference.layer_blocks),
        ):
            torch.nn.init.normal_(our_layers[level].get_parameter("bias"))
            reference_layers[i][0].load_state_dict(our_layers[level].state_dict())
    inputs = features(height, width)
    expected = reference(dict(inputs))
    actual = ours(inputs)
    assert list(actual) == ["p2", "p3", "p4", "p5", "p6"]
    for actual_level, expected_level in zip(actual.values(), expected.values()):
        torch.testing.assert_close(actual_level, expected_level)


def test_feature_specs_give_the_shapes_of_the_levels() -> None:
    neck = FeaturePyramid(SPECS, channels=6)
    for level, feature in neck(features(63, 97)).items():
        spec = neck.feature_specs[level]
        assert feature.shape == (2, 6, math.ceil(63 / spec.stride), math.ceil(97 / spec.stride))


def test_a_pyramid_of_two_levels_needs_only_these() -> None:
    neck = FeaturePyramid(SPECS, levels=("c3", "c4"), channels=6)
    inputs = features(64, 64)
    outputs = neck({"c3": inputs["c3"], "c4": inputs["c4"]})
    assert list(outputs) == list(neck.feature_specs) == ["p3", "p4", "p5"]
    assert [neck.feature_specs[level].stride for level in outputs] == [8, 16, 32]


def test_finest_level_depends_on_every_input_level() -> None:
    inputs = {level: x.requires_grad_() for level, x in features(64, 64).items()}
    FeaturePyramid(SPECS, channels=6)(inputs)["p2"].sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in inputs.values())


def test_error_for_a_missing_level_names_out_levels() -> None:
    with pytest.raises(ValueError, match=r'P2 needs C2, the backbone gives \[\'c3\', \'c4\'\]: add "c2" to out_levels'):
        FeaturePyramid({level: SPECS[level] for level in ("c3", "c4")})
