"""How the files of each source are wrapped and named, turned into torchvision's names.

A file is either the state dict itself or a dict around it; keys may carry DistributedDataParallel's `module.`.
"""

from __future__ import annotations

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
