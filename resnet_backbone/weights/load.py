"""Loading weights: whole or not at all, and a report of what happened to every key."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbone import ResNetBody
from ..specs import RESNETS
from .catalog import PUBLISHED, check_hash, published_file
from .formats import to_torchvision_names, unwrap

Source = str | PathLike[str] | Mapping[str, Tensor]


class WeightMismatch(ValueError):
    """The weights do not fit the model; `report` says where."""

    def __init__(self, message: str, report: WeightReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class WeightReport:
    """What became of every key: `loaded`; `missing` (the model's, not in the file); `unexpected` (the file's, with no
    place in the model); `mismatched` (key -> the file's shape, the model's); `unused_by_design` (`fc.*`, stages that
    are not built, `num_batches_tracked`); `kept_initial`: missing or mismatched, and allowed to be."""

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused_by_design: tuple[str, ...] = ()
    kept_initial: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, {len(self.unused_by_design)} unused by design"]
        for name in ("missing", "unexpected", "kept_initial"):
            if keys := getattr(self, name):
                lines.append(f"{name.replace('_', ' ')} ({len(keys)}): {_some(keys)}")
        if self.mismatched:
            shapes = [f"{key} file {a} model {b}" for key, (a, b) in self.mismatched.items()]
            lines.append(f"mismatched shapes ({len(shapes)}): {_some(shapes)}")
        return "\n".join(lines)


def _some(keys: Sequence[str], count: int = 4) -> str:
    return ", ".join(keys[:count]) + (f", ... and {len(keys) - count} more" if len(keys) > count else "")


def read_state(source: Source, *, net: str | None = None) -> dict[str, Tensor]:
    """A state dict with torchvision's names, from a file, a published name (of the given net), or a mapping.

    Nothing in a file is ever executed: `.safetensors`, or torch files read with `weights_only=True`.
    Raises FileNotFoundError, ConnectionError, or ValueError for a damaged file or one that would run code.
    """
    return to_torchvision_names(unwrap(read_content(source, net=net)))


def read_content(source: Source, *, net: str | None = None) -> object:
    """All that a source holds, whatever is wrapped around its state dict; see `read_state`."""
    if isinstance(source, Mapping):
        return source
    if str(source) in PUBLISHED:
        return read_file(published_file(str(source), net or "a net without a published file"))
    path = Path(source)
    if not path.is_file():
        names = ", ".join(PUBLISHED)
        raise FileNotFoundError(f"no weights at {path}: give the path of a file, or one of the names {names}")
    check_hash(path)
    return read_file(path)


def read_file(path: Path) -> object:
    """The content of a `.safetensors` or torch file; see `read_state`."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): copy or download it again") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file torch raises whatever its unpickler stumbles over: any type, even ""
        if isinstance(error, PermissionError):
            raise
        if refused := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise ValueError(
                f"{path} holds more than tensors and would run code when read ({refused[1]}): it was refused. Save its "
                "state dict alone (torch.save(model.state_dict(), ...) or safetensors)"
            ) from error
        why = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{path} is not a whole torch file ({why[:100]}): copy or download it again") from error


def load_weights(
    model: nn.Module, source: Source, *, strict: bool = True, allow_missing: Sequence[str] = ()
) -> WeightReport:
    """Copy weights into the model, and say what became of every key.

    Args:
        model: a `ResNetBackbone`, a `ResNetClassifier`, or any module whose keys the file's are.
        source: a file, a published name ("imagenet1k_v1"), or a state dict.
        strict: raise unless every tensor of the model is loaded and every tensor of the file has a place or is
            unused by design. False loads what fits and leaves it to the caller to read the report.
        allow_missing: patterns ("box_head.*") of keys that may be absent or of another shape; they keep their
            initial value and are listed in `kept_initial`.
    Raises `WeightMismatch` with the first keys and the mend; the model is untouched then.
    """
    state = read_state(source, net=_net_name(model))
    report, fitting = _compare(model, state, allow_missing)
    if strict and not report.complete:
        raise WeightMismatch(
            f"{_describe(source)} do not fit {type(model).__name__}.\n{report}\n{_mend(report)}", report
        )
    model.load_state_dict(fitting, strict=False)
    return report


def _compare(
    model: nn.Module, state: dict[str, Tensor], allow_missing: Sequence[str]
) -> tuple[WeightReport, dict[str, Tensor]]:
    everything = model.state_dict()
    own = {key: value for key, value in everything.items() if not key.endswith("num_batches_tracked")}
    unused = tuple(key for key in state if key not in everything and _unused_by_design(model, key))
    mismatched = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    }
    missing = [key for key in own if key not in state]
    kept = [k for k in (*missing, *mismatched) if any(fnmatch(k, pattern) for pattern in allow_missing)]
    fitting = {key: state[key] for key in own if key in state and key not in mismatched}
    # counters of live batch norms come along where both sides have them
    fitting |= {key: state[key] for key in everything if key not in own and key in state}
    report = WeightReport(
        loaded=tuple(fitting),
        missing=tuple(key for key in missing if key not in kept),
        unexpected=tuple(key for key in state if key not in everything and key not in unused),
        mismatched={key: shapes for key, shapes in mismatched.items() if key not in kept},
        unused_by_design=unused,
        kept_initial=tuple(kept),
    )
    return report, fitting


def _unused_by_design(model: nn.Module, key: str) -> bool:
    if key.endswith("num_batches_tracked"):
        return True
    if not isinstance(model, ResNetBody):
        return False
    # a stage is unused by design where the net has it and nobody asked for its level
    built = {*model.stage_names(), *(name for name, _ in model.named_children())}
    possible = {f"layer{index + 1}" for index in range(len(model.spec.depths))} | {"fc"}
    return key.split(".")[0] in possible - built


def _net_name(model: nn.Module) -> str | None:
    spec = getattr(model, "spec", None)
    plain = {name: row for name, row in RESNETS.items()}
    return next((name for name, row in plain.items() if spec is not None and _same_tensors(row, spec)), None)


def _same_tensors(a: object, b: object) -> bool:
    """Published weights belong to a table row; dilation does not change what is loaded."""
    names = ("block", "depths", "widths", "stem", "shortcut", "stride_on")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _describe(source: Source) -> str:
    return f"The weights in {source}" if isinstance(source, (str, PathLike)) else "The given weights"


def _mend(report: WeightReport) -> str:
    if not report.loaded:
        return "No key fits: the file belongs to another architecture or uses other names."
    if report.mismatched or report.missing:
        return (
            "Another depth, width or number of classes? Build the model that the file was made for, or pass "
            "allow_missing=[patterns] to keep the initial values of these keys."
        )
    return "The file holds more than the model: build the model that the file was made for."
