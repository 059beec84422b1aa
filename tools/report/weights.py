"""What a detector starts from, as a table: which tensors were loaded, and which stay at their initial values."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich import box
from rich.markup import escape
from rich.table import Table


def weights_table(keys: Iterable[str], loaded: Collection[str], origin: str) -> Table:
    """keys: a detector's tensors; loaded: those of them that came from `origin`. One row a part, in the journey's
    order; where a part was loaded but for some tensors, these are named."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        if not key.endswith("num_batches_tracked"):
            parts.setdefault(key.split(".")[0], []).append(key)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Weights from {escape(origin)}")
    table.add_column("part")
    table.add_column("loaded", justify="right")
    table.add_column("at initial values", justify="right")
    table.add_column("namely", overflow="fold")
    for part, own in parts.items():
        initial = [key for key in own if key not in loaded]
        named = "all" if len(initial) == len(own) else ", ".join(key.removeprefix(f"{part}.") for key in initial)
        style = "yellow" if initial else ""
        table.add_row(part, f"{len(own) - len(initial):,}", f"{len(initial):,}", escape(named), style=style)
    return table
