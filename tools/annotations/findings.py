"""What is doubtful or wrong about a data set, grouped by kind.

Everything that a reader repairs, drops or refuses becomes a finding. Findings of one kind are one group with a count
and a few examples, so that a file with 10,000 equal mistakes gives one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from resnet_backbone.errors import UserError

Severity = Literal["refused", "dropped", "repaired", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("refused", "dropped", "repaired", "warning", "note")
EXAMPLES = 3
T = TypeVar("T")


class BadAnnotations(UserError, ValueError):
    """Annotations that cannot be used. The message names the file, the entries and how to fix them."""


@dataclass
class Group:
    """Findings of one kind.

    Attributes:
        severity: "refused": the data cannot be used. "dropped": entries are left out. "repaired": entries are used
            after a correction. "warning": used as they are, although they look wrong. "note": a fact worth knowing.
        what: the kind, such as "polygon with an odd number of values".
        fix: what to do about it; empty if nothing needs to be done.
        unit: what is counted: "object", "image", "category", "outline", "part" (of an outline), "file".
        count: number of entries.
        examples: the first entries and what was there, such as "annotation 17: [8, 8, 20]".
    """

    severity: Severity
    what: str
    fix: str
    unit: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The group as one line of text.

        Returns:
            Such as "dropped: 2 objects: polygon of no area (annotation 3, annotation 9): draw it again".
        """
        unit = self.unit
        if self.count != 1:
            unit = f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
        more = " ..." if self.count > len(self.examples) and self.examples else ""
        examples = f" ({'; '.join(self.examples)}{more})" if self.examples else ""
        fix = f": {self.fix}" if self.fix else ""
        return f"{self.severity}: {self.count:,} {unit}: {self.what}{examples}{fix}"


@dataclass
class Findings:
    """The findings of one data set or split.

    Attributes:
        source: the file or folder that was read; it begins the error message.
        groups: the findings, by severity, kind and unit.
    """

    source: Path | str
    groups: dict[tuple[str, str, str], Group] = field(default_factory=dict)

    def add(
        self,
        severity: Severity,
        what: str,
        *,
        unit: str = "object",
        entry: str = "",
        came: object = None,
        fix: str = "",
        count: int = 1,
    ) -> None:
        """Add one finding, or several of one kind.

        Args:
            severity: as in `Group`.
            what: the kind; findings with the same severity, kind and unit form a group.
            unit: what is counted, as in `Group`.
            entry: the entry, such as "annotation 17" or "image 3".
            came: what the entry holds; it is shortened.
            fix: what to do about it.
            count: number of entries.
        """
        group = self.groups.setdefault((severity, what, unit), Group(severity, what, fix, unit))
        group.count += count
        if entry and len(group.examples) < EXAMPLES:
            group.examples.append(entry if came is None else f"{entry}: {shortened(came)}")

    def extend(self, other: Findings) -> None:
        """Add the findings of another data set or step to these.

        Args:
            other: the findings to add; they are not changed.
        """
        for key, group in other.groups.items():
            mine = self.groups.setdefault(key, Group(group.severity, group.what, group.fix, group.unit))
            mine.count += group.count
            mine.examples += group.examples[: EXAMPLES - len(mine.examples)]

    def drop_refused(self, *units: str) -> None:
        """Count refused entries as dropped, after the settings have said so.

        Args:
            *units: what is counted, as in `Group`. The entries must have been left out already.
        """
        refused = [group for group in self.of("refused") if group.unit in units]
        for group in refused:
            del self.groups["refused", group.what, group.unit]
            dropped = replace(group, severity="dropped")
            self.extend(Findings(self.source, {("dropped", group.what, group.unit): dropped}))

    def __iter__(self) -> Iterator[Group]:
        """The groups, the most severe first."""
        return iter(sorted(self.groups.values(), key=lambda group: SEVERITIES.index(group.severity)))

    def of(self, *severities: Severity) -> list[Group]:
        """The groups of some severities, the most severe first."""
        return [group for group in self if group.severity in severities]

    def count(self, severity: Severity, unit: str = "object") -> int:
        """Number of entries of a severity.

        Args:
            severity: as in `Group`.
            unit: as in `Group`.

        Returns:
            The sum over the groups.
        """
        return sum(group.count for group in self.groups.values() if (group.severity, group.unit) == (severity, unit))

    def lines(self) -> list[str]:
        """The groups as lines of text, the most severe first."""
        return [group.line() for group in self]

    def raise_if_refused(self) -> None:
        """Raise if anything was refused.

        Raises:
            BadAnnotations: the message lists every refused kind, and which objects were dropped.
        """
        refused = self.of("refused")
        if refused:
            lines = [f"  {group.line().removeprefix('refused: ')}" for group in refused]
            lines += [f"  besides, {group.line()}" for group in self.of("dropped") if group.unit == "object"]
            raise BadAnnotations("\n".join([f"{self.source} cannot be used:", *lines]))


def read_all(readers: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Read several splits, so that one error names what is wrong with all of them.

    Args:
        readers: a function that reads a split, by name.

    Returns:
        What they return, by name.

    Raises:
        BadAnnotations: a split cannot be used. The message is that of all such splits.
    """
    results, messages = {}, []
    for name, read in readers.items():
        try:
            results[name] = read()
        except BadAnnotations as error:
            messages.append(str(error))
    if messages:
        raise BadAnnotations("\n".join(dict.fromkeys(messages)))
    return results


def shortened(value: object, limit: int = 80) -> str:
    """The text of a value, cut at `limit` characters.

    Args:
        value: what an entry holds. Long lists are not converted as a whole.
        limit: longest text.

    Returns:
        The text; it ends in "..." if it was cut.
    """
    if isinstance(value, (list, tuple)):
        value = list(value[:limit])
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
