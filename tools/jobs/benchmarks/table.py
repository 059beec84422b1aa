"""The results as tables: on the console, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

Json = Mapping[str, Any]
COLUMNS = ("", "median", "quartiles", "rate", "x reference", "x best other", "of the limit", "compiling", "note")


def tables(results: Json) -> Iterator[Table]:
    """A table of the machine, and one for every comparison.

    Args:
        results: the content of benchmark.json.

    Yields:
        Tables for the console.
    """
    facts = Table("", "", title="machine", show_header=False)
    for name, value in machine_facts(results).items():
        facts.add_row(name, escape(value))
    yield facts
    for comparison in results["comparisons"]:
        rows = [cells_of(comparison, contender) for contender in comparison["contenders"]]
        # names need the room of the columns that say nothing here
        filled = [i for i in range(len(COLUMNS)) if i == 0 or any(row[i] for row in rows)]
        table = Table(title=escape(comparison["title"]), caption=escape("; ".join(comparison["equal"])))
        for i in filled:
            table.add_column(COLUMNS[i], overflow="fold")
        for row, contender in zip(rows, comparison["contenders"]):
            table.add_row(*(escape(row[i]) for i in filled), style="bold" if contender["ours"] else None)
        yield table


def markdown(results: Json) -> str:
    """The tables as Markdown.

    Args:
        results: the content of benchmark.json.

    Returns:
        The text, with the machine above.
    """
    lines = [f"- {name}: {value}" for name, value in machine_facts(results).items()]
    for comparison in results["comparisons"]:
        lines += ["", f"### {comparison['title']}", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
        for contender in comparison["contenders"]:
            lines.append(_line(cells_of(comparison, contender)))
        lines += ["", *(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in comparison["equal"])]
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def machine_facts(results: Json) -> dict[str, str]:
    """The machine, the versions and the command.

    Args:
        results: the content of benchmark.json.

    Returns:
        Name -> text.
    """
    machine = results["machine"]
    amx = "with AMX" if machine["amx_bf16"] else "without AMX"
    versions = [f"{name} {value or 'not installed'}" for name, value in machine["versions"].items()]
    limits = [f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in results["limits_flops_per_s"].items()]
    facts = {
        "command": f"`{results['command']}`",
        "date": results["date"],
        "processor": f"{machine['processor']}, {machine['cores']} cores, {amx}, {machine['memory_gib']} GiB",
        "threads of torch": str(machine["torch_threads"]),
        "load of the machine before": str(machine["load_before"]),
        "versions": ", ".join(versions),
        "arithmetic limit, a product of large matrices": ", ".join(limits),
        "measurements": f"{results['repeats']}, alternating; slow rows at most 3",
    }
    if "gpu" in machine:
        facts["GPU"] = f"{machine['gpu']}, CUDA {machine['cuda']}"
    if results["quick"]:
        facts["note"] = "--quick: the sizes are so small that the figures mean nothing"
    return facts


def cells_of(comparison: Json, contender: Json) -> list[str]:
    """The cells of a contender, for `COLUMNS`.

    Args:
        comparison: a part of benchmark.json.
        contender: one of its contenders.

    Returns:
        Texts; a contender that was not measured has its reason as the median.
    """
    if contender["missing"]:
        return [contender["name"], contender["missing"], *[""] * (len(COLUMNS) - 2)]
    unit, share, compile_s = comparison["unit"], contender["share_of_limit"], contender["compile_s"]
    rate = f"{contender['per_second']:.3g} {comparison['items'][1]}/s" if contender["per_second"] else ""
    low, high = contender["quartiles"]
    return [
        contender["name"],
        amount(contender["median"], unit),
        f"{amount(low, unit)} to {amount(high, unit)}",
        rate,
        times(against_reference(comparison, contender)),
        times(against_best(comparison, contender)) if contender["ours"] else "",
        "" if share is None else f"{100 * share:.0f} %",
        "" if compile_s is None else f"{compile_s:.0f} s",
        contender["note"],
    ]


def against_reference(comparison: Json, contender: Json) -> float | None:
    """How many times faster or smaller a contender is than the reference; None if there is none.

    Args:
        comparison: a part of benchmark.json.
        contender: one of its contenders.

    Returns:
        The quotient of the medians.
    """
    by_name = {one["name"]: one for one in comparison["contenders"]}
    reference = by_name.get(comparison["reference"])
    if reference is None or not reference["median"] or not contender["median"]:
        return None
    return float(reference["median"] / contender["median"])


def against_best(comparison: Json, contender: Json) -> float | None:
    """The same for the best of the others: those in fp32, and for one in bf16 those in bf16 too.

    Args:
        comparison: a part of benchmark.json.
        contender: one of its contenders.

    Returns:
        The quotient of the medians; None if there are no others.
    """
    dtypes = {"fp32", contender["dtype"]}
    others = [
        one["median"]
        for one in comparison["contenders"]
        if not one["ours"] and one["median"] and one["dtype"] in dtypes
    ]
    return float(min(others) / contender["median"]) if others and contender["median"] else None


def amount(value: float, unit: str) -> str:
    """A measurement with its unit: seconds, milliseconds or MiB."""
    if unit != "s":
        return f"{value:,.0f} {unit}"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def times(value: float | None) -> str:
    """A quotient as text; empty for None."""
    return "" if value is None else f"{value:.2f}"
