"""What several hosts need of a net: other numbers of input channels, and loading the file of a whole classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from ..backbone import ResNetBody
from ..errors import InvalidValue, did_you_mean
from ..norm import initialise_convs
from ..specs import RESNETS

# the nets with C2..C5: models of every host read these levels
IMAGENET_NETS = tuple(name for name, spec in RESNETS.items() if len(spec.depths) == 4)


def imagenet_net(name: str) -> str:
    """Check that a net has the levels C2..C5.

    Args:
        name: a row of `RESNETS`.

    Returns:
        The name.

    Raises:
        InvalidValue: an unknown net, or one without C5.
    """
    if name not in IMAGENET_NETS:
        raise InvalidValue(f"{name!r} is no net with C2..C5: {did_you_mean(name, IMAGENET_NETS)}")
    return name


def set_input_channels(body: ResNetBody, channels: int) -> None:
    """Replace the first convolution by one for another number of input channels, with initial values.

    Args:
        body: a net; with the same number of channels it is left as it is.
        channels: channels of the images.
    """
    parent, name = (body.conv1, "0") if isinstance(body.conv1, nn.Sequential) else (body, "conv1")
    old = getattr(parent, name)
    if channels == old.in_channels:
        return
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    initialise_convs(new)
    setattr(parent, name, new.requires_grad_(old.weight.requires_grad))


class FeatureBody(ResNetBody):
    """A body without a classifier, for hosts that load files of whole classifiers with `load_state_dict`."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Load a state dict without the keys that this body does not need, such as `fc.*` (`is_unused_key`).

        Args:
            state_dict: key -> tensor.
            strict: as for `torch.nn.Module.load_state_dict`.
            assign: as for `torch.nn.Module.load_state_dict`.

        Returns:
            Missing and unexpected keys.
        """
        own_keys = self.state_dict()
        used = {key: value for key, value in state_dict.items() if key in own_keys or not self.is_unused_key(key)}
        incompatible: _IncompatibleKeys = super().load_state_dict(used, strict, assign)
        return incompatible
