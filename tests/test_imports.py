"""The import graph of the packages, read from their sources, has no cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("resnet_backbone", "heads", "tools")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, including those inside functions, except `if TYPE_CHECKING` statements."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from runtime_nodes(node)


def imports_of(path: Path, modules: Mapping[str, Path]) -> set[str]:
    """The modules of this project that a file imports at run time."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported: set[str] = set()
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports package.module, `from module import name` imports module
            imported |= {
                f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules else source for alias in node.names
            }
    return (imported & set(modules)) - {name}


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules in a cycle, or with imports that lead to one, each followed by those imports.

    Modules without remaining imports are removed until none is left.
    """
    remaining = {name: set(imports) for name, imports in graph.items()}
    while without_imports := [name for name, imports in remaining.items() if not imports & set(remaining)]:
        for name in without_imports:
            del remaining[name]
    return [[name, *sorted(imports & set(remaining))] for name, imports in remaining.items()]


def test_import_graph_has_no_cycles() -> None:
    modules = {module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    graph = {name: imports_of(path, modules) for name, path in modules.items()}
    assert len(graph) > 60 and "resnet_backbone.weights.load" in graph["resnet_backbone.build"]
    assert cycles(graph) == []


def test_cycles_reports_a_cycle_and_modules_that_lead_to_it() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["a", "b"], ["b", "c"], ["c", "b"]]
