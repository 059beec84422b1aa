"""Class layers for other classes: the rows of the classes that two detectors share, found by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from resnet_backbone.weights.load import Rows

from .class_lists import UNUSED

# layers with a shape that depends on the number of classes, as patterns of keys
CLASS_LAYERS = ("box_head*.logits.*", "box_head*.deltas.*", "mask_head.logits.*")
# the same layers -> rows of a class, rows of the background behind those of the classes
_LAYERS = (
    (re.compile(r"box_head\w*\.logits\.\w+"), 1, 1),
    (re.compile(r"box_head\w*\.deltas\.\w+"), 4, 0),
    (re.compile(r"mask_head\.logits\.\w+"), 1, 0),
)
_SHOWN = 8  # names of classes in a note


def default_names(num_classes: int) -> tuple[str, ...]:
    """The names of the classes of a detector that was given none."""
    return tuple(f"class {i}" for i in range(num_classes))


def rows_by_name(
    initial: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Sequence[str] | None, new_names: Sequence[str]
) -> Rows:
    """Put together class layers for new classes: rows of shared names and of the background, initial values elsewhere.

    Names are compared without case, and "-" and "_" as blanks. A name that one of the detectors has twice, and
    torchvision's "N/A", stand for no class.

    Args:
        initial: the state dict of the detector that will be loaded, at initial values.
        state: the tensors of the weights under native keys.
        names: the classes of the weights, in the order of their labels; None if they are unknown.
        new_names: the classes of the detector.

    Returns:
        The class layers. None are made where the classes are the same, or are unknown for one of the two: then the
        layers are loaded as they are, if their shapes agree.
    """
    if new_names == default_names(len(new_names)) or names == default_names(len(names or ())):
        names = None
    if names is None or list(names) == list(new_names):
        same_number = names is None and any(
            key in state and len(state[key]) == len(value)
            for key, value in initial.items()
            if _LAYERS[0][0].fullmatch(key)
        )
        unknown = ("class layers taken by position: the names of the classes are unknown",) if same_number else ()
        return Rows(notes=unknown)
    pairs = _shared(names, new_names)
    if pairs == [(i, i) for i in range(len(names))] and len(names) == len(new_names):
        return Rows(notes=("class layers kept: the classes are the same, spelled differently",))
    made: dict[str, Tensor] = {}
    partly: dict[str, tuple[int, int]] = {}
    left: list[str] = []
    for key, value in initial.items():
        rule = next((rule for rule in _LAYERS if rule[0].fullmatch(key)), None)
        if rule is None or key not in state or state[key].shape[1:] != value.shape[1:]:
            continue
        _, per_class, background = rule
        if len(state[key]) != len(names) * per_class + background:
            continue  # strict loading reports another shape than that of the classes
        made_here, count = _make(value, state[key], pairs, per_class, background)
        if count == 0:
            left.append(key)
            continue
        made[key] = made_here
        if count < len(value):
            partly[key] = count, len(value)
    return Rows(made, partly, tuple(left), (_note(pairs, names, new_names),))


def _make(
    initial: Tensor, rows: Tensor, pairs: Sequence[tuple[int, int]], per_class: int, background: int
) -> tuple[Tensor, int]:
    """A layer for the new classes, and the number of its rows that are not at initial values."""
    made, steps = initial.detach().clone(), torch.arange(per_class)
    if pairs:
        new, old = torch.tensor(pairs).T
        to, origin = ((which[:, None] * per_class + steps).flatten() for which in (new, old))
        made[to.to(made.device)] = rows[origin.to(rows.device)].to(made)
    if background:
        made[-background:] = rows[-background:].to(made)
    return made, len(pairs) * per_class + background


def _shared(names: Sequence[str], new_names: Sequence[str]) -> list[tuple[int, int]]:
    """(new label, old label) of every class that both have."""
    old, new = _labels(names), _labels(new_names)
    return [(label, old[name]) for name, label in new.items() if name in old]


def _labels(names: Sequence[str]) -> dict[str, int]:
    """Name, spelled uniformly -> label; without the names that stand for no class or for several."""
    spelled = [" ".join(re.sub(r"[-_]", " ", name.casefold()).split()) for name in names]
    return {name: i for i, name in enumerate(spelled) if spelled.count(name) == 1 and names[i] != UNUSED}


def _note(pairs: Sequence[tuple[int, int]], names: Sequence[str], new_names: Sequence[str]) -> str:
    shared = [new_names[new] for new, _ in pairs]
    others = [name for name in new_names if name not in shared]
    kept = f"{len(shared)} of {len(new_names)} classes are in the weights" + (f" ({_first(shared)})" if shared else "")
    rest = f"initial values for {_first(others)}" if others else "none at initial values"
    return f"class layers re-made by name: {kept}, {rest}; the background kept; the weights had {_first(names)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
