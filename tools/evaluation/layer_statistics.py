"""What happens inside a classifier: the spread of its layers' responses, and the gradients that reach its weights.

Source: the paper, figure 7 (standard deviations of layer responses) and section 4.1 (gradients have healthy norms).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import ResNetClassifier
from resnet_backbone.errors import InvalidValue


def layer_names(net: ResNetClassifier) -> list[str]:
    """The convolutions with weights of the main path, in the order of the journey (shortcuts are beside it)."""
    return [
        name
        for name, part in net.named_modules()
        if isinstance(part, nn.Conv2d) and "downsample" not in name.split(".")
    ]


def norm_of(conv: str) -> str:
    """The name of the norm behind a convolution: `layer1.0.conv2` -> `layer1.0.bn2`."""
    head, _, last = conv.rpartition(".")
    return f"{head}.{last.replace('conv', 'bn')}" if head else last.replace("conv", "bn")


@torch.inference_mode()
def response_std(net: ResNetClassifier, pixels: Tensor, *, batch: int = 128) -> dict[str, float]:
    """pixels: (N, 3, H, W), normalised -> layer -> standard deviation of its responses over images, channels and
    places: after its norm, before addition and ReLU. The net is in inference mode. Raises ValueError for a net whose
    norms are folded into its convolutions, or with a deep stem, whose responses cannot be told apart."""
    names = {norm_of(conv): conv for conv in layer_names(net)}
    parts = dict(net.named_modules())
    if not all(isinstance(parts.get(name), _BatchNorm) for name in names):
        raise InvalidValue(
            "responses are read behind live batch norms: build the net with norm='bn' and an ordinary stem"
        )
    sums = {conv: torch.zeros(3, dtype=torch.float64) for conv in names.values()}

    def reader(conv: str) -> Any:
        def read(_: nn.Module, __: Any, output: Tensor) -> None:
            values = output.double()
            found = torch.tensor([values.numel(), 0.0, 0.0], dtype=torch.float64)
            found[1], found[2] = values.sum().cpu(), values.square().sum().cpu()
            sums[conv] += found

        return read

    hooks = [parts[norm].register_forward_hook(reader(conv)) for norm, conv in names.items()]
    try:
        net.eval()
        for part in pixels.split(batch):
            net(part)
    finally:
        for hook in hooks:
            hook.remove()
    return {conv: float((s[2] / s[0] - (s[1] / s[0]) ** 2).clamp(min=0).sqrt()) for conv, s in sums.items()}


def gradient_norms(net: ResNetClassifier, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """batches: (pixels, labels) each -> layer -> L2 norm of the cross-entropy's gradient by its weights, the mean over
    the batches. The net is in training mode, as when it learns; its weights and statistics stay as they were."""
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parts = dict(net.named_modules())
    weights = {name: parts[name].weight for name in layer_names(net)}
    total = dict.fromkeys(weights, 0.0)
    net.train()
    for pixels, labels in batches:
        loss = F.cross_entropy(net(pixels), labels)
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values()))):
            total[name] += float(gradient.norm()) / len(batches)
    net.load_state_dict(before)
    return total
