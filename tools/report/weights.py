"""Initial weights of a net, as a table: which tensors were loaded, and which are at their initial values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text


def weights_table(
    keys: Iterable[str],
    loaded: Collection[str],
    weights: str | PathLike[str] | None,
    *,
    partly: Mapping[str, tuple[int, int]] | None = None,
    notes: Sequence[str] = (),
) -> Group:
    """Build the table of loaded tensors: one row for each part of the net, the first component of the keys.

    Args:
        keys: keys of the net's state dict, in its order. `num_batches_tracked` is not counted.
        loaded: those keys that were loaded.
        weights: the file that they were loaded from; None if nothing was loaded.
        partly: keys of which some rows were loaded -> (loaded rows, all rows); the rest is at initial values.
        notes: what was chosen while loading (`WeightReport.notes`).

    Returns:
        A heading, the table and the notes, to print together. The table lists the keys at their initial values, or
        "all" if nothing of a part was loaded.
    """
    rows = {} if partly is None else partly
    parts: dict[str, list[str]] = {}
    for key in keys:
        if not key.endswith("num_batches_tracked"):
            parts.setdefault(key.split(".")[0], []).append(key)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part")
    table.add_column("loaded", justify="right")
    table.add_column("at initial values", justify="right")
    table.add_column("keys at initial values", overflow="fold")
    for part, part_keys in parts.items():
        initial = [key for key in part_keys if key not in loaded]
        texts = [_with_rows(key.removeprefix(f"{part}."), rows.get(key)) for key in initial]
        nothing = len(initial) == len(part_keys) and not any(key in rows for key in initial)
        names = "all" if nothing else ", ".join(texts)
        style = "yellow" if initial else ""
        table.add_row(Text(part), f"{len(part_keys) - len(initial):,}", f"{len(initial):,}", Text(names), style=style)
    heading = "Initial weights, random" if weights is None else f"Initial weights, from {weights}"
    lines = [Text(f"note: {note}", overflow="fold") for note in notes]
    return Group(Text(heading, style="italic", overflow="fold"), table, *lines)


def _with_rows(key: str, rows: tuple[int, int] | None) -> str:
    return key if rows is None else f"{key} ({rows[1] - rows[0]} of {rows[1]} rows)"
