"""The house's layers: a package imports only from those below it, and nothing imports in a circle.

docs/architecture.md draws this order. Imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import vllm_variants

PACKAGE = Path(vllm_variants.__file__).parent
# Each package with those it may import from, besides itself; `base` are the modules at the top.
LAYERS: dict[str, set[str]] = {
    "base": set(),
    "model": {"base"},
    "system": {"base", "model"},
    "machine": {"base", "model", "system"},
    "fatbin": {"base", "model", "system"},
    "nix": {"base", "model", "system", "machine"},
    "audit": {"base", "model", "system", "machine", "fatbin", "nix"},
    "store": {"base", "model", "system"},
    "builders": {"base", "model", "system", "machine", "fatbin", "nix", "audit", "store"},
    "export": {"base", "model", "system", "machine", "fatbin", "audit", "store", "builders"},
    "verify": {"base", "model", "system", "machine", "checks"},
    "doctor": {"base", "model", "system", "machine", "nix", "store", "builders"},
    "maintain": {"base", "model", "system", "machine", "nix", "builders", "verify"},
    "reports": {"base", "model", "system", "fatbin", "audit", "verify"},
    "checks": set(),
    "cli": set(),  # everything: it is the top
}
LAYERS["api"] = {*LAYERS} - {"doctor", "maintain", "checks", "cli"}
BASE = {"errors", "data", "documents", "versions"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `vllm_variants`."""
    named = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head != "vllm_variants":
                continue
            while rest and rest not in known:
                rest = rest.rpartition(".")[0]
            found.add(rest)
    return found


def layer(module: str) -> str:
    head = module.partition(".")[0]
    return "base" if head in BASE | {""} else head


GRAPH = {name: imports(path, modules()) - {name} for name, path in modules().items()}


def test_nothing_imports_in_a_circle() -> None:
    graph = {name: {other for other in others if other} for name, others in GRAPH.items() if name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize(
    "module", sorted(name for name in GRAPH if layer(name) != "cli" and name not in {"", "__main__"})
)
def test_a_module_knows_only_the_layers_below_it(module: str) -> None:
    allowed = LAYERS[layer(module)] | {layer(module)}
    above = {other for other in GRAPH[module] if layer(other) not in allowed}
    assert not above
