"""`ResNetBackbone`: parity with torchvision's nets, output levels, feature specs and freezing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resnet_backbone import RESNETS, ResNetBackbone, ResNetSpec, build_backbone, load_weights
from resnet_backbone.blocks import BasicBlock, Bottleneck

Hashes = Callable[[Mapping[str, Tensor]], dict[str, str]]
LEVELS = ["c1", "stem", "c2", "c3", "c4", "c5"]
NARROW = ResNetSpec(Bottleneck, (1, 2, 1, 1), widths=(4, 8, 8, 8))
MODULES_OF_STAGE = (("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",))


def torchvision_net(name: str) -> torchvision.models.ResNet:
    """A net of torchvision with random statistics and affine terms in its norms."""
    net = torchvision.models.get_model(name, weights=None).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.3, 0.9)
            nn.init.normal_(norm.bias, std=0.1)
            norm.state_dict()["running_mean"].normal_(std=0.1)
            norm.state_dict()["running_var"].uniform_(0.5, 2)
    return net


def torchvision_levels(net: torchvision.models.ResNet, x: Tensor) -> dict[str, Tensor]:
    """The outputs of torchvision's net under the names of our levels."""
    features = {"c1": net.relu(net.bn1(net.conv1(x)))}
    x = features["stem"] = net.maxpool(features["c1"])
    for level, stage in zip(LEVELS[2:], (net.layer1, net.layer2, net.layer3, net.layer4)):
        x = features[level] = stage(x)
    return features


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_all_levels_equal_torchvisions_with_frozen_bn_and_bn(name: str) -> None:
    reference, pixels = torchvision_net(name), torch.randn(1, 3, 64, 96)
    expected = torchvision_levels(reference, pixels)
    for norm in ("frozen_bn", "bn"):
        ours = ResNetBackbone(RESNETS[name], norm=norm, out_levels=LEVELS).eval()
        load_weights(ours, reference.state_dict())
        features = ours(pixels)
        assert list(features) == LEVELS
        for level in LEVELS:
            error = (features[level] - expected[level]).abs().max() / expected[level].abs().max()
            assert error < 1e-5, f"{level} with {norm}"


def test_gradients_with_frozen_norms_equal_torchvisions() -> None:
    reference, pixels = torchvision_net("resnet18").double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    ours = ResNetBackbone(RESNETS["resnet18"]).double()
    load_weights(ours, reference.state_dict())
    ours(pixels)["c5"].square().sum().backward()
    torchvision_levels(reference, pixels)["c5"].square().sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-8, atol=1e-8 * expected[name].grad.abs().max()
        )


@pytest.mark.parametrize("out_levels", [["c5"], ["c4", "c2"], ["stem"], ["c1", "c3"], LEVELS])
def test_any_subset_of_levels_gives_the_same_tensors_in_order_of_stride(out_levels: list[str]) -> None:
    full = ResNetBackbone(NARROW, out_levels=LEVELS)
    subset = ResNetBackbone(NARROW, out_levels=out_levels)
    load_weights(subset, full.state_dict())
    pixels = torch.randn(1, 3, 64, 64)
    all_features, features = full(pixels), subset(pixels)
    assert list(features) == [level for level in LEVELS if level in out_levels] == list(subset.feature_specs)
    assert all(torch.equal(features[level], all_features[level]) for level in out_levels)


@pytest.mark.parametrize(
    ("level", "stages"), [("c1", []), ("stem", []), ("c2", ["layer1"]), ("c4", ["layer1", "layer2", "layer3"])]
)
def test_stages_beyond_the_deepest_requested_level_are_not_built(level: str, stages: list[str]) -> None:
    net = ResNetBackbone(NARROW, out_levels=level)
    assert [name for name, _ in net.named_children() if name.startswith("layer")] == stages


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["c2", "stem1"], "out_levels names 'stem1'.*did you mean 'stem'"),
        (["c2", "c6"], "out_levels names 'c6'.*give one of c1, stem, c2, c3, c4, c5"),
        ([], "out_levels is empty"),
    ],
)
def test_unknown_or_empty_out_levels_are_refused(levels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetBackbone(NARROW, out_levels=levels)


def test_c5_of_a_three_stage_net_is_refused() -> None:
    with pytest.raises(ValueError, match="this net has .*'c4'"):
        ResNetBackbone(RESNETS["resnet20_cifar"], out_levels=["c5"])


@torch.inference_mode()
@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 97),
    width=st.integers(1, 97),
    dilation=st.sampled_from([1, 2]),
    stride_on=st.sampled_from(["1x1", "3x3"]),
)
def test_feature_specs_give_the_output_shapes_at_any_size(
    height: int, width: int, dilation: int, stride_on: str
) -> None:
    spec = ResNetSpec(Bottleneck, (1, 1, 1, 1), widths=(4, 4, 8, 8), c5_dilation=dilation, stride_on=stride_on)  # type: ignore[arg-type]
    net = ResNetBackbone(spec, out_levels=LEVELS)
    for level, feature in net(torch.randn(1, 3, height, width)).items():
        published = net.feature_specs[level]
        assert feature.shape == (
            1,
            published.channels,
            math.ceil(height / published.stride),
            math.ceil(width / published.stride),
        )


def test_feature_specs_have_the_channels_and_strides_of_resnet50_and_resnet20() -> None:
    with torch.device("meta"):
        resnet50, resnet20 = (
            ResNetBackbone(RESNETS["resnet50"], out_levels=LEVELS),
            ResNetBackbone(RESNETS["resnet20_cifar"], out_levels=LEVELS[:-1]),
        )
    rows = {level: (spec.channels, spec.stride) for level, spec in resnet50.feature_specs.items()}
    assert rows == {"c1": (64, 2), "stem": (64, 4), "c2": (256, 4), "c3": (512, 8), "c4": (1024, 16), "c5": (2048, 32)}
    rows = {level: (spec.channels, spec.stride) for level, spec in resnet20.feature_specs.items()}
    assert rows == {"c1": (16, 1), "stem": (16, 1), "c2": (16, 1), "c3": (32, 2), "c4": (64, 4)}


@pytest.mark.parametrize("frozen_stages", range(6))
def test_training_step_changes_exactly_the_stages_that_are_not_frozen(frozen_stages: int, hashes: Hashes) -> None:
    """Weights, affine terms, running statistics and counters, compared by their hashes."""
    net = ResNetBackbone(NARROW, norm="bn", out_levels=LEVELS, frozen_stages=frozen_stages).train()
    frozen = tuple(prefix for prefixes in MODULES_OF_STAGE[:frozen_stages] for prefix in prefixes)
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {
        name for name, _ in net.named_parameters() if name.startswith(frozen or "nothing")
    }
    before = hashes(net.state_dict())
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.01)
    pixels = torch.randn(4, 3, 64, 64, requires_grad=True)  # there is an autograd graph even if all stages are frozen
    torch.stack([(x * torch.randn_like(x)).sum() for x in net(pixels).values()]).sum().backward()
    optimiser.step()
    after = hashes(net.state_dict())
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {key for key in after if not key.startswith(frozen or "nothing")}


@pytest.mark.parametrize("frozen_stages", [-1, 6])
def test_frozen_stages_outside_0_to_5_are_refused(frozen_stages: int) -> None:
    with pytest.raises(ValueError, match=f"frozen_stages={frozen_stages}: give 0"):
        ResNetBackbone(NARROW, frozen_stages=frozen_stages)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_blocks_are_the_identity_if_the_last_norm_is_zero_initialised(
    block: type[BasicBlock | Bottleneck], norm: str
) -> None:
    spec = ResNetSpec(block, (1, 3), widths=(8, 8), zero_init_last_norm=True)
    net = ResNetBackbone(spec, norm=norm, out_levels=["c3"])
    x = torch.randn(2, 8 * block.expansion, 6, 6).relu()
    for block_name in ("layer2.1", "layer2.2"):
        assert torch.equal(net.get_submodule(block_name)(x), x)


@pytest.mark.parametrize(
    ("norm", "frozen_stages", "setting"),
    [("frozen_bn", 0, "norm='frozen_bn'"), ("bn", 2, "frozen_stages=2"), ("gn", 1, "frozen_stages=1")],
)
def test_freezing_initial_values_is_refused(norm: str, frozen_stages: int, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} without weights.*train from scratch with norm='bn'"):
        build_backbone("resnet18", norm=norm, frozen_stages=frozen_stages)


def test_net_without_weights_is_built_if_nothing_is_frozen() -> None:
    net = build_backbone(NARROW, norm="gn", frozen_stages=0)
    assert all(p.requires_grad for p in net.parameters())


def test_error_for_an_unknown_net_suggests_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="no ResNet is called 'resnet51': did you mean 'resnet50'"):
        build_backbone("resnet51")


def test_sync_bn_in_eval_on_the_cpu_equals_batch_norm() -> None:
    batch_norm, sync_bn = (ResNetBackbone(NARROW, norm=norm).eval() for norm in ("bn", "sync_bn"))
    load_weights(sync_bn, batch_norm.state_dict())
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(sync_bn(pixels), batch_norm(pixels))
