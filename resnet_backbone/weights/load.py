"""Loading weights: whole or not at all, and a report of what happened to every key."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..backbone import ResNetBackbone, ResNetBody
from ..specs import RESNETS, spec_from_dict
from .catalog import PUBLISHED, check_hash, published_file
from .certificate import (
    FORMAT,
    METADATA,
    CertificateMismatch,
    body_fingerprint,
    check_fingerprint,
    check_hashes,
    preprocess_from,
)
from .keymaps import Renamed, unwrap
from .pickled import read_arrays
from .sources import SOURCES, WeightSource, resolve_source, check_source_name

Source = str | PathLike[str] | Mapping[str, Tensor]


@runtime_checkable
class LoadsWeights(Protocol):
    """A model that knows other projects' names for its tensors, and what its weights must have been trained with."""

    def to_native_keys(self, state: Mapping[str, Tensor]) -> Renamed: ...

    def check_source(self, meaning: WeightSource, file: WeightFile) -> None:
        """Raises ValueError where the model was built otherwise."""

    def apply_source(self, meaning: WeightSource | None, file: WeightFile, renamed: Renamed) -> None:
        """Take over what travels with the weights: their preprocessing, and what else the model keeps."""


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


@dataclass(frozen=True)
class WeightFile:
    """A source, read. state: its tensors under its own names; content: all that it holds; path: None for a mapping;
    meta: what a file that we wrote says of itself (`certificate.py`), None for any other."""

    state: dict[str, Tensor]
    content: object
    path: Path | None = None
    meta: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return "the given weights" if self.path is None else str(self.path)

    @cached_property
    def certified(self) -> WeightSource:
        """What the certificate of a file of ours says, once its tensors and the backbone's answers are checked.

        Raises `CertificateMismatch`.
        """
        assert self.meta is not None
        check_hashes(self.state, self.meta["tensors"], str(self))
        pixels, net = preprocess_from(self.meta), self.meta["net"]
        own = {key.removeprefix("backbone."): value for key, value in self.state.items()}
        try:
            with torch.random.fork_rng(devices=[]):  # building draws initial values that nobody will see
                body = ResNetBackbone(**{**net, "spec": spec_from_dict(net["spec"])})
            body.load_state_dict({key: own[key] for key in body.state_dict() if "num_batches" not in key}, strict=False)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CertificateMismatch(
                f"{self}: its certificate describes no net of these tensors ({error}): make the file again"
            ) from error
        answers = body_fingerprint(body, pixels)
        certified = {stage: values for stage, values in self.meta["fingerprint"].items() if stage in answers}
        check_fingerprint(answers, certified, str(self))
        return WeightSource(self.meta["project"], body.spec.stride_on, pixels, net["norm_eps"])


def read_weights(source: Source | WeightFile, *, net: str | None = None) -> WeightFile:
    """A file, a run's folder, a published name (of the given net) or a mapping, read.

    Nothing in a file is ever executed: `.safetensors`, torch files read with `weights_only=True`, and `.pkl` files of
    arrays. Raises FileNotFoundError, ConnectionError, or ValueError for a damaged file or one that would run code.
    """
    if isinstance(source, WeightFile):
        return source
    path = None
    if isinstance(source, Mapping):
        content: object = source
    elif str(source) in PUBLISHED:
        path = published_file(str(source), net or "a net without a published file")
        content = read_file(path)
    else:
        path = Path(source)
        if path.is_dir():  # a run of tools/train_cls.py or train_det.py
            path = checkpoint_of(path)
        if not path.is_file():
            names = ", ".join(PUBLISHED)
            raise FileNotFoundError(f"no weights at {path}: give the path of a file, or one of the names {names}")
        check_hash(path)
        content = read_file(path)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not (isinstance(meta, Mapping) and {"format", "kind"} <= set(meta)):
        meta = None
    elif meta["format"] > FORMAT:
        raise ValueError(f"{path} was written by a newer version (format {meta['format']}): update resnet-backbone")
    elif lost := {"source", "project", "net", "preprocess", "tensors", "fingerprint"} - set(meta):
        raise CertificateMismatch(f"{path}: its certificate has lost {', '.join(sorted(lost))}: make the file again")
    return WeightFile(unwrap(content), content, path, meta)


def checkpoint_of(run: Path) -> Path:
    """The last checkpoint in a run's folder. Raises FileNotFoundError."""
    found = run / "checkpoints" / "last.pt"
    if not found.is_file():
        raise FileNotFoundError(f"{run} has no checkpoints/last.pt: is it a run's folder, and has it saved one?")
    return found


def read_file(path: Path) -> object:
    """The content of a `.safetensors`, `.pkl` or torch file; see `read_weights`."""
    if path.suffix == ".pkl":
        return read_arrays(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
                header = (file.metadata() or {}).get(METADATA)
            return state if header is None else {"model": state, "meta": json.loads(header)}
        except (SafetensorError, json.JSONDecodeError) as error:
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
    model: nn.Module,
    source: Source | WeightFile,
    *,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
    origin: str | None = None,
) -> WeightReport:
    """Copy weights into the model, and say what became of every key.

    Args:
        model: a `ResNetBackbone`, a `ResNetClassifier`, an `RCNN`, or any module whose keys the file's are.
        source: a file (.pth, .safetensors, or a .pkl of arrays), a published name ("imagenet1k_v1"), or a state dict,
            under the names of any layout that `keymaps.py` knows.
        strict: raise unless every tensor of the model is loaded and every tensor of the file has a place or is
            unused by design. False loads what fits and leaves it to the caller to read the report.
        allow_missing: patterns ("box_head.*") of keys that may be absent or of another shape; they keep their
            initial value and are listed in `kept_initial`.
        origin: whose weights these are (a key of `SOURCES`), where neither the file's names nor its metadata nor a
            published hash tell. A state dict under our own names needs none.
    The model's `preprocess` becomes that of the weights.
    Raises `WeightMismatch` with the first keys and the mend; `CertificateMismatch` for a file of ours that is not what
    it says; `AmbiguousWeights`; ValueError where the model was built with another stride or epsilon than the weights
    were trained with. The model is untouched then.
    """
    file = read_weights(source, net=_net_name(model))
    renamed = model.to_native_keys(file.state) if isinstance(model, LoadsWeights) else Renamed(dict(file.state))
    meaning = source_of(file, renamed, origin)
    if meaning is not None and isinstance(model, LoadsWeights):
        model.check_source(meaning, file)
    report, fitting = _compare(model, renamed.state, allow_missing)
    report = replace(report, unused_by_design=(*report.unused_by_design, *renamed.unused))
    if strict and not report.complete:
        raise WeightMismatch(f"{file} do not fit {type(model).__name__}.\n{report}\n{_mend(report)}", report)
    model.load_state_dict(fitting, strict=False)
    if isinstance(model, LoadsWeights):
        model.apply_source(meaning, file, renamed)
    return report


def source_of(file: WeightFile, renamed: Renamed, origin: str | None) -> WeightSource | None:
    """What the weights were trained with: what a certificate says, once it is checked, or the row of `SOURCES` that
    is decided on (`sources.decide`). None for a state dict under our own names: its owner knows.

    Raises `CertificateMismatch`, `AmbiguousWeights`, or ValueError where origin contradicts the certificate.
    """
    if file.meta is not None:
        if origin is not None:
            check_source_name(origin)
            asked, said = SOURCES[origin], file.certified
            if (asked.stride_on, asked.preprocess.channel_order) != (said.stride_on, said.preprocess.channel_order):
                raise ValueError(f"{file} is certified as {said}, but source={origin!r} means {asked}: leave it out")
        return file.certified
    own_names = set(renamed.state) == set(file.state)
    if not renamed.candidates or (own_names and file.path is None and origin is None):
        if origin is not None:
            check_source_name(origin)
        return None if origin is None else SOURCES[origin]
    return SOURCES[resolve_source(renamed.candidates, asked=origin, content=file.content, path=file.path)]


def _compare(
    model: nn.Module, state: dict[str, Tensor], allow_missing: Sequence[str]
) -> tuple[WeightReport, dict[str, Tensor]]:
    everything = model.state_dict()
    own = {key: value for key, value in everything.items() if not key.endswith("num_batches_tracked")}
    unused = tuple(key for key in state if key not in everything and unused_by_design(model, key))
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


def unused_by_design(model: nn.Module, key: str) -> bool:
    """Whether a file's tensor without a place in the model is none by the model's design: see `WeightReport`."""
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


def _mend(report: WeightReport) -> str:
    if not report.loaded:
        return "No key fits: the file belongs to another architecture or uses other names."
    if report.mismatched or report.missing:
        return (
            "Another depth, width or number of classes? Build the model that the file was made for, or pass "
            "allow_missing=[patterns] to keep the initial values of these keys."
        )
    return "The file holds more than the model: build the model that the file was made for."
