"""Gradient checkpointing of `ResNetClassifier`: a training step gives the same result with less memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_backbone import ResNetClassifier


def step(net: ResNetClassifier, *, recompute: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], int]:
    """The loss, the gradients, the buffers after the step, and the bytes saved for the backward pass."""
    saved_bytes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        saved_bytes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    net.recompute = recompute
    pixels, labels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(8)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = F.cross_entropy(net(pixels), labels)
    loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(net.named_buffers()), sum(saved_bytes.values())


@pytest.fixture
def net_pair() -> Iterator[tuple[ResNetClassifier, ResNetClassifier]]:
    """Two ResNet-20 with equal weights in float64, which is the default dtype during the test."""
    nets = [ResNetClassifier("resnet20_cifar", num_classes=10).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield nets[0], nets[1]
    torch.set_default_dtype(default_dtype)


def test_checkpointed_step_gives_the_same_loss_gradients_and_statistics(
    net_pair: tuple[ResNetClassifier, ResNetClassifier],
) -> None:
    loss, gradients, buffers, saved_bytes = step(net_pair[0], recompute=False)
    checkpointed_loss, checkpointed_gradients, checkpointed_buffers, checkpointed_bytes = step(
        net_pair[1], recompute=True
    )
    assert torch.equal(loss, checkpointed_loss) and gradients.keys() == checkpointed_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(checkpointed_gradients[name], gradient, rtol=1e-12, atol=1e-14)
    for name, buffer in buffers.items():  # running statistics and their update counters
        assert torch.equal(checkpointed_buffers[name], buffer), name
    assert checkpointed_bytes < saved_bytes / 3


def test_checkpointing_does_not_change_inference(net_pair: tuple[ResNetClassifier, ResNetClassifier]) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    net_pair[1].recompute = True
    assert torch.equal(net_pair[0].eval()(pixels), net_pair[1].eval()(pixels))
