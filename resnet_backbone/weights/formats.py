"""How the files of each source are wrapped and named, turned into torchvision's names.

A file is either the state dict itself or a dict around it; keys may carry DistributedDataParallel's `module.`.
Renaming is written once, from our keys to the source's: reading a file is the same table looked up backwards, so that
what one direction places the other direction finds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# where trainers put the state dict: ours and detectron2 "model", most others "state_dict"
WRAPPERS = ("model", "state_dict", "model_state_dict")


def unwrap(content: object) -> dict[str, Tensor]:
    """The state dict inside a loaded file. Raises ValueError where there is none."""
    if isinstance(content, Mapping):
        for key in WRAPPERS:
            if isinstance(content.get(key), Mapping):
                return unwrap(content[key])
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(key): value for key, value in content.items()}
        found = ", ".join(map(str, list(content)[:5])) or "nothing"
    else:
        found = type(content).__name__
    raise ValueError(f"no state dict in this file (it holds {found}): it must be one, or hold one under {WRAPPERS}")


def to_torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`module.` is stripped where every key has it; the CIFAR nets' `linear.*` becomes `fc.*`."""
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {("fc" + key.removeprefix("linear") if key.startswith("linear.") else key): v for key, v in state.items()}


def body_key_in_detectron2(key: str) -> str:
    """Our key of a net's body (`layer1.0.bn2.weight`) -> detectron2's (`res2.0.conv2.norm.weight`)."""
    key = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", key)
    key = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", key)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
    return key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
