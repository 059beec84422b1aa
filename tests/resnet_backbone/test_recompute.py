"""Recomputing: the same step for less memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_backbone import ResNetClassifier


def step(net: ResNetClassifier, *, recompute: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], int]:
    """Loss, gradients, statistics afterwards, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    net.recompute = recompute
    pixels, labels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(net(pixels), labels)
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(net.named_buffers()), sum(kept.values())


@pytest.fixture
def twins() -> Iterator[tuple[ResNetClassifier, ResNetClassifier]]:
    nets = [ResNetClassifier("resnet20_cifar", num_classes=10).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield nets[0], nets[1]
    torch.set_default_dtype(before)


def test_loss_gradients_and_statistics_are_those_of_a_plain_step(
    twins: tuple[ResNetClassifier, ResNetClassifier],
) -> None:
    loss, gradients, buffers, kept = step(twins[0], recompute=False)
    again, same_gradients, same_buffers, less = step(twins[1], recompute=True)
    assert torch.equal(loss, again) and gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-12, atol=1e-14)
    for name, buffer in buffers.items():  # running statistics, and how often they were updated
        assert torch.equal(same_buffers[name], buffer), name
    assert less < kept / 3


def test_inference_does_not_know_of_it(twins: tuple[ResNetClassifier, ResNetClassifier]) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    twins[1].recompute = True
    assert torch.equal(twins[0].eval()(pixels), twins[1].eval()(pixels))
