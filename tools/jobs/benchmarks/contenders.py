"""What is compared in a row, and how it is measured: alternating, so that a disturbance meets everybody alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

NOT_INSTALLED = "not installed"
FP32, BF16 = "fp32", "bf16"


@dataclass(frozen=True)
class Contender:
    """One implementation in a row.

    Attributes:
        name: what the table calls it.
        measure: does the work once. It returns what was measured, or None if its time is to be taken.
        ours: whether it is this project.
        dtype: precision of its arithmetic, "fp32" or "bf16"; it decides which limit applies.
        compile_s: seconds that compiling took before the measurement; None if nothing was compiled.
        missing: why it is not measured, such as "not installed"; empty if it is.
        note: what a reader must know of it.
    """

    name: str
    measure: Callable[[], float | None] | None
    ours: bool = False
    dtype: str = FP32
    compile_s: float | None = None
    missing: str = ""
    note: str = ""

    @classmethod
    def absent(cls, name: str, why: str, *, ours: bool = False, dtype: str = FP32) -> Contender:
        """A contender that cannot be measured here.

        Args:
            name: what the table calls it.
            why: the reason.
            ours: whether it is this project.
            dtype: its precision.

        Returns:
            The contender; the table shows it with the reason.
        """
        return cls(name, None, ours=ours, dtype=dtype, missing=why)


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work.

    Attributes:
        row: name of the row, a key of `rows.ROWS`.
        title: what is done.
        contenders: who does it.
        reference: name of the contender that the others are compared with; None if there is none.
        unit: of the measurements: "s" or "MiB".
        flops: floating-point operations of the work; None if they were not counted.
        items: how many things the work is done for, and what they are; None if that says nothing.
        equal: how far the results agree, in sentences.
        x: place on the axis of a growth plot, and its name; None for other rows.
        max_repeats: limit on the measurements of each contender, for slow rows.
        warm_up: whether everything runs once before it is measured.
    """

    row: str
    title: str
    contenders: Sequence[Contender]
    reference: str | None = None
    unit: str = "s"
    flops: int | None = None
    items: tuple[int, str] | None = None
    equal: Sequence[str] = ()
    x: tuple[float, str] | None = None
    max_repeats: int | None = None
    warm_up: bool = True


@dataclass
class Measured:
    """A contender and its measurements.

    Attributes:
        contender: the contender.
        samples: its measurements, in the unit of the comparison; empty if it is missing.
    """

    contender: Contender
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """The median; None without measurements."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The lower and the upper quartile; None without measurements."""
        return quartiles(self.samples) if self.samples else None


def as_work(function: Callable[..., object], *arguments: Any) -> Callable[[], None]:
    """Work to be timed.

    Args:
        function: does it; its result is dropped, since a result would count as the measurement.
        arguments: of the function.

    Returns:
        The function of no arguments that `Contender.measure` takes.
    """

    def once() -> None:
        function(*arguments)

    return once


def for_each(function: Callable[[Any], object], things: Iterable[Any]) -> Callable[[], None]:
    """Work that is done for several things, one after the other; as `as_work`."""
    things = list(things)

    def all_of_them() -> None:
        for thing in things:
            function(thing)

    return all_of_them


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper quartile, with linear interpolation.

    Args:
        values: at least one.

    Returns:
        Both.
    """
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def alternate(comparison: Comparison, repeats: int, synchronise: Callable[[], None]) -> list[Measured]:
    """Measure the contenders in turn, round by round; every other round in the opposite order.

    Args:
        comparison: the contenders.
        repeats: number of rounds, if the comparison does not limit it.
        synchronise: waits for the device; called before the clock is read.

    Returns:
        Measurements of every contender, in the order of the contenders; sample i of each is from round i.
    """
    measured = [Measured(contender) for contender in comparison.contenders]
    present = [m for m in measured if not m.contender.missing]
    if comparison.warm_up:
        for one in present:
            _once(one.contender, synchronise)
    rounds = min(repeats, comparison.max_repeats or repeats)
    for number in range(rounds):
        for one in present if number % 2 == 0 else reversed(present):
            one.samples.append(_once(one.contender, synchronise))
    return measured


def _once(contender: Contender, synchronise: Callable[[], None]) -> float:
    assert contender.measure is not None
    synchronise()
    began = time.perf_counter()
    value = contender.measure()
    synchronise()
    return time.perf_counter() - began if value is None else value


def ratio(theirs: Measured, ours: Measured) -> float | None:
    """How many times ours is faster or smaller.

    Args:
        theirs: the other.
        ours: the one that is praised if this is above 1.

    Returns:
        The quotient of the medians, theirs by ours; None if one of them was not measured.
    """
    return theirs.median / ours.median if theirs.median and ours.median else None


def ratio_quartiles(theirs: Measured, ours: Measured) -> tuple[float, float] | None:
    """The spread of the quotient over the rounds, each of which measured both; None if one was not measured."""
    pairs = [t / o for t, o in zip(theirs.samples, ours.samples) if o]
    return quartiles(pairs) if pairs else None
