"""The state dict in what a file holds: below which entries, averaged or not, and which prefix its keys share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidValue

# where trainers put the state dict: this project and detectron2 "model", most others "state_dict", Caffe2 "blobs"
WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")
# read where there is none of those
OTHER_WRAPPERS = ("weights", "params", "module", "net", "network", "model_state")
# where they put the running averages (EMA): timm, torchvision and DeiT, BasicSR, RT-DETR and others
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "ema_model", "ema")
# what wrappers put before every key: DistributedDataParallel, torch.compile, and modules that hold a net
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside its `module.`


@dataclass(frozen=True)
class Unwrapped:
    """A state dict that was found.

    Attributes:
        state: the tensors, without the prefix.
        prefix: what was removed from every key.
        notes: what was chosen or left out, one sentence each.
    """

    state: dict[str, Tensor]
    prefix: str = ""
    notes: tuple[str, ...] = ()


def unwrap(content: object, *, part: str | None = None, keep_keys: bool = False) -> Unwrapped:
    """Find the state dict in a loaded file.

    Args:
        content: the state dict itself, or a dict that holds it under one of `WRAPPERS`, `OTHER_WRAPPERS` or `AVERAGED`.
            Averaged weights are taken where a file has both, as timm does for inference.
        part: the entry to take instead; "ema.module" is the entry "module" of the entry "ema".
        keep_keys: do not remove a prefix that all keys share.

    Returns:
        The state dict.

    Raises:
        InvalidValue: there is no state dict, or there are several and `part` is None.
    """
    notes: list[str] = []
    if part is not None:
        content = _entry(content, part)
        notes.append(f"taken from {part!r}, as asked")
    state = _find(content, "", notes)
    if state is None:
        raise InvalidValue(
            f"no state dict in this file (it holds {_summary(content)}): it must be one, or hold one under "
            f"{(*WRAPPERS, *OTHER_WRAPPERS)}, averaged weights under {AVERAGED}"
        )
    if keep_keys:
        return Unwrapped(state, notes=tuple(notes))
    if _COUNTER in state and all(key.startswith("module.") for key in state if key != _COUNTER):
        del state[_COUNTER]
        notes.append(f"{_COUNTER}, a counter of AveragedModel, was left out")
    names = common_prefixes(state)
    if names and names[-1] == "backbone.":  # projects write detectors so: the net knows their keys
        names = names[:-1]
    prefix = "".join(names)
    return Unwrapped({key.removeprefix(prefix): value for key, value in state.items()}, prefix, tuple(notes))


def common_prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """The names of `PREFIXES` before every key, outermost first; empty if the keys share none."""
    names: list[str] = []
    while state:
        first = next(iter(state))[len("".join(names)) :]
        name = next((p for p in PREFIXES if first.startswith(p) and len(first) > len(p)), None)
        if name is None or not all(key.startswith("".join(names) + name) for key in state):
            break
        names.append(name)
    return names


def _entry(content: object, part: str) -> object:
    """An entry of nested dicts; a name with dots is tried as one name first."""
    if isinstance(content, Mapping):
        if part in content:
            return content[part]
        first, _, rest = part.partition(".")
        if rest and first in content:
            return _entry(content[first], rest)
    raise InvalidValue(f"part={part!r} is not in this file: it holds {_summary(content)}")


def _find(content: object, trail: str, notes: list[str]) -> dict[str, Tensor] | None:
    """The state dict in an entry; None if there is none. What is chosen on the way is added to the notes."""
    if not isinstance(content, Mapping):
        return None
    found: dict[str, tuple[dict[str, Tensor], list[str]]] = {}
    for key in (*AVERAGED, *WRAPPERS, *OTHER_WRAPPERS):
        if isinstance(content.get(key), Mapping):
            below: list[str] = []
            state = _find(content[key], f"{trail}{key}.", below)
            if state is not None:
                found[key] = state, below
    if not found:
        return _flat(content, notes)
    key = _choose(content, found, trail, notes)
    state, below = found[key]
    notes.extend(below)
    return state


def _choose(content: Mapping[Any, Any], found: Mapping[str, Any], trail: str, notes: list[str]) -> str:
    """The entry to take among those that hold a state dict."""
    averaged = [key for key in found if key in AVERAGED]
    raw = [key for key in found if key in WRAPPERS] or [key for key in found if key in OTHER_WRAPPERS]
    if averaged and raw and "message_hub" in content:  # mmengine writes the two the other way round, for deployment
        averaged, raw = raw, averaged
    group = averaged or raw
    if len(group) > 1 and not all(_equal(found[group[0]][0], found[key][0]) for key in group[1:]):
        raise InvalidValue(
            f"this file holds several state dicts, under {' and '.join(trail + key for key in group)}: read the "
            f"right one with open_weights(..., part={trail + group[0]!r}), and give that as the weights"
        )
    key = group[0]
    left = [trail + other for other in found if other not in group]
    unusable = [trail + name for name in AVERAGED if name not in found and content.get(name) is not None]
    if averaged:
        what = f"averaged (EMA) weights taken, from {trail + key!r}"
        others = f"; not taken: {', '.join(left)}, which open_weights(..., part={left[0]!r}) reads" if left else ""
        notes.append(what + others)
    else:
        notes.append(f"taken from {trail + key!r}" + (f"; not taken: {', '.join(left)}" if left else ""))
    if unusable and not averaged:
        notes.append(f"{', '.join(unusable)} holds no state dict, so no averaged weights were taken")
    return key


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def _flat(content: Mapping[Any, Any], notes: list[str]) -> dict[str, Tensor] | None:
    """A dict of tensors as a state dict; plain values beside them are left out, and said."""
    state: dict[str, Tensor] = {}
    plain: list[str] = []
    for key, value in content.items():
        if isinstance(value, Tensor):
            state[str(key)] = value
        elif hasattr(value, "__array_interface__"):  # NumPy's arrays
            if value.dtype.kind not in "fiub":
                return None
            state[str(key)] = torch.as_tensor(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            plain.append(str(key))
        else:
            return None
    if not state:
        return None
    if plain:
        notes.append(f"{', '.join(plain[:4])} {'is' if len(plain) == 1 else 'are'} no tensor and left out")
    return state


def _summary(content: object) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    return ", ".join(map(str, list(content)[:5])) or "nothing"
