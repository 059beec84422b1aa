"""Layer statistics equal those of a forward and a backward pass written out here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from resnet_backbone import ResNetClassifier
from tools.evaluation.layer_statistics import gradient_norms, layer_names, norm_of, response_std


@pytest.fixture
def net() -> ResNetClassifier:
    net = ResNetClassifier("resnet20_cifar_b", num_classes=10)
    for _ in range(10):
        net(torch.randn(16, 3, 32, 32))
    return net.eval()


def test_layers_are_the_convolutions_of_the_main_path(net: ResNetClassifier) -> None:
    names = layer_names(net)
    assert len(names) == 19 and names[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]  # with the linear layer: 20
    assert [norm_of(name) for name in names[:2]] == ["bn1", "layer1.0.bn1"]


def test_responses_are_measured_after_the_norm_and_before_addition_and_relu(net: ResNetClassifier) -> None:
    pixels = torch.randn(20, 3, 32, 32)
    deviations = response_std(net, pixels, batch=8)
    assert list(deviations) == layer_names(net)
    with torch.inference_mode():
        stem = net.bn1(net.conv1(pixels))
        block = net.get_submodule("layer1.0")
        inner = block.bn1(block.conv1(F.relu(stem)))  # type: ignore[operator]
        outer = block.bn2(block.conv2(F.relu(inner)))  # type: ignore[operator]
    for name, responses in (("conv1", stem), ("layer1.0.conv1", inner), ("layer1.0.conv2", outer)):
        assert deviations[name] == pytest.approx(float(responses.std(correction=0)), rel=1e-5)


def test_gradient_norms_are_those_of_backward_and_the_net_is_unchanged(net: ResNetClassifier) -> None:
    batches = [(torch.randn(6, 3, 32, 32), torch.randint(0, 10, (6,))) for _ in range(2)]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    norms = gradient_norms(net, batches)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    expected = []
    for pixels, labels in batches:
        net.zero_grad()
        F.cross_entropy(net.train()(pixels), labels).backward()
        expected.append({name: float(net.get_parameter(f"{name}.weight").grad.norm()) for name in norms})  # type: ignore[union-attr]
    for name, value in norms.items():
        assert value == pytest.approx((expected[0][name] + expected[1][name]) / 2, rel=1e-4)


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "frozen_bn"), ("resnet18", "gn"), ("resnet50d", "bn")])
def test_responses_need_a_batch_norm_behind_every_convolution(name: str, norm: str) -> None:
    with pytest.raises(ValueError, match=f"live batch norms, this net has norm='{norm}'.*: build it with norm='bn'"):
        response_std(ResNetClassifier(name, norm=norm), torch.randn(1, 3, 32, 32))
