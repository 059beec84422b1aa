"""Layer statistics of a classifier: standard deviations of the layers' responses, and norms of their gradients.

Source: the paper, figure 7 (standard deviations of layer responses) and section 4.1 ("the backward propagated gradients
exhibit healthy norms with BN").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import ResNetClassifier
from resnet_backbone.errors import InvalidValue


def layer_names(net: ResNetClassifier) -> list[str]:
    """Names of the convolutions of the main path, from the input to the output; projection shortcuts are left out."""
    return [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and "downsample" not in name.split(".")
    ]


def norm_of(conv: str) -> str:
    """Name of the norm that follows a convolution: `layer1.0.conv2` -> `layer1.0.bn2`."""
    block, _, last = conv.rpartition(".")
    return f"{block}.{last.replace('conv', 'bn')}" if block else last.replace("conv", "bn")


@torch.inference_mode()
def response_std(net: ResNetClassifier, pixels: Tensor, *, batch: int = 128) -> dict[str, float]:
    """Measure the standard deviation of every layer's responses (the paper, figure 7).

    A response is the output of the layer's batch norm, before addition and ReLU. The deviation is taken over images,
    channels and positions. The net is put into inference mode.

    Args:
        net: the classifier.
        pixels: (N, 3, H, W), normalised.
        batch: images per forward pass.

    Returns:
        Name of the convolution -> standard deviation, from the input to the output.

    Raises:
        InvalidValue: a convolution has no batch norm of its own: its norm is folded into it (norm="frozen_bn"), is no
            batch norm, or belongs to a deep stem.
    """
    conv_of = {norm_of(conv): conv for conv in layer_names(net)}
    modules = dict(net.named_modules())
    if not all(isinstance(modules.get(name), _BatchNorm) for name in conv_of):
        raise InvalidValue(
            f"responses are measured behind live batch norms, this net has norm={net.norm!r} and the "
            f"{net.spec.stem!r} stem: build it with norm='bn' and the 'imagenet' or 'cifar' stem"
        )
    moments = {conv: torch.zeros(3, dtype=torch.float64) for conv in conv_of.values()}  # count, sum, sum of squares

    def hook_for(conv: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add_moments(_: nn.Module, __: Any, output: Tensor) -> None:
            values = output.double()
            batch_moments = torch.tensor([values.numel(), 0.0, 0.0], dtype=torch.float64)
            batch_moments[1], batch_moments[2] = values.sum().cpu(), values.square().sum().cpu()
            moments[conv] += batch_moments

        return add_moments

    hooks = [modules[norm].register_forward_hook(hook_for(conv)) for norm, conv in conv_of.items()]
    try:
        net.eval()
        for part in pixels.split(batch):
            net(part)
    finally:
        for hook in hooks:
            hook.remove()
    return {conv: float((m[2] / m[0] - (m[1] / m[0]) ** 2).clamp(min=0).sqrt()) for conv, m in moments.items()}


def gradient_norms(net: ResNetClassifier, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Measure the L2 norm of the gradient of the cross-entropy with respect to every layer's weights.

    The net is put into training mode. Its weights and running statistics are the same afterwards.

    Args:
        net: the classifier.
        batches: (pixels, labels) each: (N, 3, H, W), normalised, and (N,) int64.

    Returns:
        Name of the convolution -> norm, the mean over the batches, from the input to the output.
    """
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modules = dict(net.named_modules())
    weights = {name: modules[name].weight for name in layer_names(net)}
    norms = dict.fromkeys(weights, 0.0)
    net.train()
    for pixels, labels in batches:
        loss = F.cross_entropy(net(pixels), labels)
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values()))):
            norms[name] += float(gradient.norm()) / len(batches)
    net.load_state_dict(before)
    return norms
