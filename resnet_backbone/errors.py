"""The half of an error message that names the mend: the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, valid: Iterable[object]) -> str:
    """'did you mean ...?' with the nearest valid name, or the list of them."""
    names = [str(v) for v in valid]
    near = get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(names)}"
