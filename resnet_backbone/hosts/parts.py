"""What several hosts ask of a net: another number of input channels, and to take a whole classifier's file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..backbone import ResNetBody
from ..errors import InvalidValue, did_you_mean
from ..norm import initialise_convs
from ..specs import RESNETS

# the nets with C2..C5, which is what every host's models are built on
IMAGENET_NETS = tuple(name for name, spec in RESNETS.items() if len(spec.depths) == 4)


def imagenet_net(name: str) -> str:
    """Raises ValueError for a net without C2..C5."""
    if name not in IMAGENET_NETS:
        raise InvalidValue(f"{name!r} is no net with C2..C5: {did_you_mean(name, IMAGENET_NETS)}")
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


class LevelsOfANet(ResNetBody):
    """A body whose host loads whole classifiers' files by `load_state_dict`: what is unused by design is left out."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        own = self.state_dict()
        used = {key: x for key, x in state_dict.items() if key in own or not self.is_unused_key(key)}
        return super().load_state_dict(used, strict, assign)
