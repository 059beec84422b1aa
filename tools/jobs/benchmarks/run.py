"""Run a benchmark, and write what it found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

from resnet_backbone.errors import AlreadyExists

from .contenders import Comparison, Measured, alternate, ratio, ratio_quartiles
from .rows import ROWS, check_rows, comparisons
from .setting import Setting

Results = dict[str, Any]
RESULTS_FILE, TABLE_FILE = "benchmark.json", "benchmark.md"


def benchmark(
    setting: Setting,
    rows: Sequence[str] = (),
    *,
    out: str | PathLike[str] | None = None,
    overwrite: bool = False,
    command: str = "",
) -> Results:
    """Measure rows one after the other.

    Args:
        setting: how to run.
        rows: names of rows; all of them if empty.
        out: folder to write benchmark.json, benchmark.md and the plots to; None writes nothing. The first two are
            written anew after every comparison, so that a run that is stopped has what it measured.
        overwrite: whether to replace the files of an earlier run.
        command: the command line, for the record.

    Returns:
        The content of benchmark.json.

    Raises:
        InvalidValue: a row or a setting is unknown.
        AlreadyExists: `out` holds an earlier benchmark.
    """
    from .limit import limits  # not at the top: it imports a part of torch that `--help` does not need
    from .machine import describe

    names = list(rows) or list(ROWS)
    check_rows(names)
    folder = None if out is None else Path(out)
    if folder is not None:
        if (folder / RESULTS_FILE).exists() and not overwrite:
            raise AlreadyExists(f"{folder} holds a benchmark: give another folder, or --overwrite")
        folder.mkdir(parents=True, exist_ok=True)
    setting.say("arithmetic limit")
    results: Results = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": describe(setting.device),
        "device": setting.device,
        "repeats": setting.repeats,
        "quick": setting.quick,
        "limits_flops_per_s": limits(setting),
        "comparisons": [],
    }
    for name in names:
        setting.say(f"{name}: {ROWS[name].what}")
        for comparison in comparisons(name, setting):
            setting.say(f"{name}: measuring {comparison.title}")
            measured = alternate(comparison, setting.repeats, setting.synchronise)
            results["comparisons"].append(as_json(comparison, measured))
            if comparison.flops:  # beside the row: the machine may have been disturbed before
                _raise_limits(results, limits(setting))
            set_shares(results)
            if folder is not None:
                _write(results, folder)
    if folder is not None:
        from .plots import write_plots  # not at the top: `--help` does not need matplotlib

        write_plots(results, folder)
    return results


def as_json(comparison: Comparison, measured: Sequence[Measured]) -> dict[str, Any]:
    """A comparison and its measurements for the file.

    Args:
        comparison: what was compared.
        measured: the measurements of its contenders.

    Returns:
        A part of benchmark.json, without the shares of the limit.
    """
    timed = comparison.unit == "s"
    contenders = []
    for one in measured:
        who, median = one.contender, one.median
        contenders.append(
            {
                "name": who.name,
                "ours": who.ours,
                "dtype": who.dtype,
                "median": median,
                "quartiles": one.quartiles,
                "samples": one.samples,
                "per_second": comparison.items[0] / median if comparison.items and median and timed else None,
                "share_of_limit": None,
                "compile_s": who.compile_s,
                "missing": who.missing,
                "note": who.note,
            }
        )
    return {
        "row": comparison.row,
        "title": comparison.title,
        "unit": comparison.unit,
        "flops": comparison.flops,
        "items": comparison.items,
        "reference": comparison.reference,
        "equal": list(comparison.equal),
        "x": comparison.x,
        "contenders": contenders,
        "ratios": _ratios(measured),
    }


def set_shares(results: Results) -> None:
    """Compute the shares of the limit; a limit is the most that was measured in the whole run.

    Args:
        results: the content of benchmark.json; changed in-place.
    """
    from .limit import share

    for comparison in results["comparisons"]:
        for contender in comparison["contenders"]:
            seconds = contender["median"] if comparison["unit"] == "s" else None
            limit = results["limits_flops_per_s"].get(contender["dtype"])
            contender["share_of_limit"] = share(comparison["flops"], seconds, limit)


def _raise_limits(results: Results, measured: Mapping[str, float]) -> None:
    known = results["limits_flops_per_s"]
    for dtype, value in measured.items():
        known[dtype] = max(value, known.get(dtype, 0.0))


def _ratios(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every other contender's median divided by every one of ours."""
    return [
        {
            "ours": ours.contender.name,
            "theirs": theirs.contender.name,
            "ratio": ratio(theirs, ours),
            "quartiles": ratio_quartiles(theirs, ours),
        }
        for ours in measured
        for theirs in measured
        if ours.contender.ours and not theirs.contender.ours and ours.samples and theirs.samples
    ]


def _write(results: Results, folder: Path) -> None:
    from .table import markdown

    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / TABLE_FILE).write_text(markdown(results), encoding="utf-8")
