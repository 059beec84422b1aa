"""What several hosts ask of a net: another number of input channels, and a whole classifier's file for some stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..backbone import ResNetBody
from ..norm import initialise_convs
from ..specs import RESNETS
from ..suggest import unknown

# the nets with C2..C5, which is what every host's models are built on
IMAGENET_NETS = tuple(name for name, spec in RESNETS.items() if len(spec.depths) == 4)


def imagenet_net(name: str) -> str:
    """Raises ValueError for a net without C2..C5."""
    if name not in IMAGENET_NETS:
        raise ValueError(f"{name!r} is no net with C2..C5: {unknown(name, IMAGENET_NETS)}")
    return name


def set_input_channels(body: ResNetBody, channels: int) -> None:
    """Give a fresh net another number of input channels: its first convolution anew, at its initial values."""
    parent, name = (body.conv1, "0") if isinstance(body.conv1, nn.Sequential) else (body, "conv1")
    old = getattr(parent, name)
    if channels == old.in_channels:
        return
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    initialise_convs(new)
    setattr(parent, name, new.requires_grad_(old.weight.requires_grad))


def without_unused(body: ResNetBody, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A net's state dict without what this body leaves out by design: `fc.*`, and stages that are not built."""
    built = {name for name, _ in body.named_children()}
    possible = {f"layer{index + 1}" for index in range(len(body.spec.depths))} | {"fc"}
    return {key: value for key, value in state.items() if key.split(".")[0] not in possible - built}
