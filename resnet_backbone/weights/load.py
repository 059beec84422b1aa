"""Copying tensors into a model: completely or not at all, with a report of what happened to every key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ..errors import InvalidValue, UserError
from .certificate import certified_source
from .keymaps import Renamed, nets_in
from .read import WeightFile
from .sources import SOURCES, WeightSource, check_source_name, resolve_source
from .unwrap import PREFIXES


@runtime_checkable
class LoadsWeights(Protocol):
    """A model that renames other projects' keys and checks the settings that its weights were trained with."""

    def to_native_keys(self, state: Mapping[str, Tensor]) -> Renamed:
        """Bring the tensors of a file, in any layout, to the keys of this model."""

    def check_source(self, source: WeightSource, file: WeightFile) -> None:
        """Raise InvalidValue if this model was built with other settings than the weights were trained with."""

    def apply_source(self, source: WeightSource | None, file: WeightFile, renamed: Renamed) -> None:
        """Take over what travels with the weights: their pixel format, and class names where the model has classes."""

    def is_unused_key(self, key: str) -> bool:
        """Whether a tensor without a place in this model is left out by design, such as a stage that is not built."""


class WeightMismatch(UserError, ValueError):
    """The weights do not fit the model.

    Args:
        message: what does not fit, and how to fix it.
        report: what would have happened to every key.
    """

    def __init__(self, message: str, report: WeightReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class WeightReport:
    """What happened to every key.

    Attributes:
        loaded: keys that were copied.
        missing: keys of the model that the file lacks.
        unexpected: keys of the file that have no place in the model.
        mismatched: key -> shape in the file, shape in the model.
        unused_by_design: keys of the file that the model does not need: `fc.*`, stages that are not built,
            `num_batches_tracked`.
        kept_initial: missing or mismatched keys that `allow_missing` permits; they keep their initial values.
        partly_loaded: key -> (rows from the file, rows of the tensor), for class layers that are loaded by the names of
            the classes; the other rows keep their initial values.
        notes: what was chosen while reading, one sentence each: a prefix that was removed, averaged weights that were
            taken, classes that were found by name.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused_by_design: tuple[str, ...] = ()
    kept_initial: tuple[str, ...] = ()
    partly_loaded: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, {len(self.unused_by_design)} unused by design"]
        for name in ("missing", "unexpected", "kept_initial"):
            if keys := getattr(self, name):
                lines.append(f"{name.replace('_', ' ')} ({len(keys)}): {_first(keys)}")
        if self.partly_loaded:
            rows = [f"{key} {a} of {b} rows" for key, (a, b) in self.partly_loaded.items()]
            lines.append(f"partly loaded ({len(rows)}): {_first(rows)}")
        if self.mismatched:
            shapes = [f"{key} file {a} model {b}" for key, (a, b) in self.mismatched.items()]
            lines.append(f"mismatched shapes ({len(shapes)}): {_first(shapes)}")
        return "\n".join([*lines, *self.notes])


def _first(keys: Sequence[str], count: int = 4) -> str:
    return ", ".join(keys[:count]) + (f", ... and {len(keys) - count} more" if len(keys) > count else "")


@dataclass(frozen=True)
class Rows:
    """Class layers that were put together for other classes than the file's.

    Attributes:
        state: key -> the whole tensor, with the rows of the file and initial values elsewhere.
        partly: key -> (rows from the file, rows of the tensor), where some rows keep their initial values.
        left: keys of the file whose rows are all of other classes; they are treated as if the file lacked them.
        notes: what was found by name, one sentence each.
    """

    state: Mapping[str, Tensor] = field(default_factory=dict)
    partly: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_file(
    model: nn.Module,
    file: WeightFile,
    *,
    source: str | None = None,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
    choose_rows: Callable[[Renamed], Rows] = lambda _: Rows(),
) -> WeightReport:
    """Copy the tensors of a file that was read into a model, without checking a certificate's hashes and outputs.

    Args:
        model: any module; one that `LoadsWeights` also takes the keys of other projects.
        file: what `read_weights` returned.
        source: where the weights come from, as for `load_weights`.
        strict: as for `load_weights`.
        allow_missing: as for `load_weights`.
        choose_rows: makes class layers for the classes of the model out of the tensors under native keys.

    Returns:
        What happened to every key.

    Raises:
        WeightMismatch: a tensor has no place, is missing or has another shape, and `strict` is set.
        AmbiguousWeights: the source cannot be identified.
        InvalidValue: the model was built with another stride placement or epsilon, or tensors hold no finite numbers.
            The model is unchanged then.
    """
    file, renamed, removed = _spelling_that_fits(model, file, allow_missing)
    weight_source = source_of(file, renamed, source)
    if weight_source is not None and isinstance(model, LoadsWeights):
        model.check_source(weight_source, file)
    rows = choose_rows(renamed)
    state = {key: value for key, value in {**renamed.state, **rows.state}.items() if key not in rows.left}
    report, fitting = _compare(model, state, allow_missing)
    report = replace(
        report,
        loaded=tuple(key for key in report.loaded if key not in rows.partly),
        partly_loaded=dict(rows.partly),
        unused_by_design=(*report.unused_by_design, *renamed.unused),
        notes=(*file.notes, *_prefix_notes(removed, renamed, len(file.state)), *rows.notes),
    )
    if strict and not report.complete:
        fix = _fix(report, file.state)
        raise WeightMismatch(f"{file} do not fit {type(model).__name__}.\n{report}\n{fix}", report)
    _check_values(model, fitting, file)
    model.load_state_dict(fitting, strict=False)
    if isinstance(model, LoadsWeights):
        model.apply_source(weight_source, file, renamed)
    return report


def _spelling_that_fits(
    model: nn.Module, file: WeightFile, allow_missing: Sequence[str]
) -> tuple[WeightFile, Renamed, str]:
    """The file without the prefix that the model's keys lack, its tensors under native keys, and that prefix."""
    best: tuple[tuple[bool, int], WeightFile, Renamed, str] | None = None
    for removed, state in file.spellings():
        renamed = model.to_native_keys(state) if isinstance(model, LoadsWeights) else Renamed(dict(state))
        report, _ = _compare(model, renamed.state, allow_missing)
        rank = report.complete and bool(report.loaded), len(report.loaded)
        if best is None or rank > best[0]:
            best = rank, replace(file, state=state), renamed, removed
    assert best is not None
    return best[1:]


def _prefix_notes(removed: str, renamed: Renamed, count: int) -> list[str]:
    notes = [f"prefix {removed!r} removed from all {count} keys"] if removed else []
    return notes + ([f"the net is under {renamed.prefix!r} in the file"] if renamed.prefix else [])


def _check_values(model: nn.Module, fitting: Mapping[str, Tensor], file: WeightFile) -> None:
    """Refuse tensors that hold no finite floating-point numbers where the model has such numbers."""
    expected = {key: value.dtype for key, value in model.state_dict().items() if value.is_floating_point()}
    floats = {key: value for key, value in fitting.items() if key in expected}
    others = [key for key, value in floats.items() if value.is_meta or not value.is_floating_point()]
    if others:
        first = floats[others[0]]
        kind = "a shape without values (device meta)" if first.is_meta else str(first.dtype)
        raise InvalidValue(
            f"{file}: {len(others)} of {len(fitting)} tensors hold no floating-point numbers, first {others[0]} "
            f"({kind}): the weights were quantised or converted; take the file from before that"
        )
    # in the type of the model: a value that is finite in the file may be too large for it
    bad = {key: int((~value.to(expected[key]).isfinite()).sum()) for key, value in floats.items()}
    damaged = [key for key, count in bad.items() if count]
    if damaged:
        first_key = damaged[0]
        raise InvalidValue(
            f"{file}: {len(damaged)} of {len(fitting)} tensors hold NaN or infinite values, first {first_key} "
            f"({bad[first_key]:,} of {floats[first_key].numel():,} values): the training diverged or the file is "
            "damaged; take an earlier checkpoint or another copy"
        )


def source_of(file: WeightFile, renamed: Renamed, source: str | None) -> WeightSource | None:
    """Tell what the weights of a file were trained with.

    Args:
        file: what `read_weights` returned.
        renamed: its tensors under native keys.
        source: the caller's choice, a key of `SOURCES`; None to resolve it from the file.

    Returns:
        The description in the metadata of a file of this project, or the row of `SOURCES` for any other. None for a
        state dict with native keys, which is taken as it is.

    Raises:
        AmbiguousWeights: the source cannot be identified.
        InvalidValue: the caller's choice contradicts the file.
    """
    if source is not None:
        check_source_name(source)
    if file.meta is not None:
        described = certified_source(file.meta)
        if source is not None:
            chosen = SOURCES[source]
            if (chosen.stride_on, chosen.preprocess.channel_order) != (
                described.stride_on,
                described.preprocess.channel_order,
            ):
                raise InvalidValue(
                    f"{file} is certified as {described}, but source={source!r} means {chosen}: leave source out"
                )
        return described
    native_keys = set(renamed.state) == set(file.state)
    if not renamed.candidates or (native_keys and file.path is None and source is None):
        return None if source is None else SOURCES[source]
    return SOURCES[resolve_source(renamed.candidates, source=source, content=file.content, path=file.path)]


def _compare(
    model: nn.Module, state: dict[str, Tensor], allow_missing: Sequence[str]
) -> tuple[WeightReport, dict[str, Tensor]]:
    """What would happen to every key, and the tensors that fit."""
    model_state = model.state_dict()
    needed = {key: value for key, value in model_state.items() if not key.endswith("num_batches_tracked")}
    unused = tuple(key for key in state if key not in model_state and _is_unused(model, key))
    mismatched = {
        key: (tuple(state[key].shape), tuple(value.shape))
        for key, value in needed.items()
        if key in state and state[key].shape != value.shape
    }
    missing = [key for key in needed if key not in state]
    kept = [k for k in (*missing, *mismatched) if any(fnmatch(k, pattern) for pattern in allow_missing)]
    fitting = {key: state[key] for key in needed if key in state and key not in mismatched}
    # counters of live batch norms are copied where both sides have them
    fitting |= {key: state[key] for key in model_state if key not in needed and key in state}
    report = WeightReport(
        loaded=tuple(fitting),
        missing=tuple(key for key in missing if key not in kept),
        unexpected=tuple(key for key in state if key not in model_state and key not in unused),
        mismatched={key: shapes for key, shapes in mismatched.items() if key not in kept},
        unused_by_design=unused,
        kept_initial=tuple(kept),
    )
    return report, fitting


def _is_unused(model: nn.Module, key: str) -> bool:
    if key.endswith("num_batches_tracked"):
        return True
    return isinstance(model, LoadsWeights) and model.is_unused_key(key)


def _fix(report: WeightReport, state: Mapping[str, Tensor]) -> str:
    nets = nets_in(state)
    if len(nets) > 1:
        return f"The file holds several nets, under {', '.join(map(repr, nets))}: load a state dict of one of them."
    for prefix in PREFIXES:
        with_prefix = [key for key in report.unexpected if key.startswith(prefix)]
        without = [key for key in state if not key.startswith(prefix)]
        if without and any(key.removeprefix(prefix) in report.missing for key in with_prefix):
            return (
                f"{len(with_prefix)} keys begin with {prefix!r}, first {with_prefix[0]}, and {len(without)} do not, "
                f"first {without[0]}: the file was put together from two nets. Save the state dict of one net."
            )
    if not report.loaded:
        return "No key fits: the file belongs to another architecture or uses other names."
    if report.mismatched or report.missing:
        return (
            "Another depth, width or number of classes? Build the model that the file was made for, or pass "
            "allow_missing=[patterns] to keep the initial values of these keys."
        )
    return "The file holds more than the model: build the model that the file was made for."
