"""Compute generated text: tables in README.md and docs/, and Flox's expressions.

In a Markdown file a generated part stands between `<!-- generated: NAME -->` and
`<!-- end generated -->`; NAME is one that `_tables` knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vllm_variants.errors import ExitCode, InputError
from vllm_variants.maintain import flox, measurements
from vllm_variants.model import advisories, offers
from vllm_variants.model.variants import Matrix, Related

_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def variants(matrix: Matrix) -> str:
    """The variant table of the README."""
    rows = [
        (
            f"`{v.short}`",
            str(v.capability),
            v.architecture,
            ", ".join(v.gpus) + _related(v.related),
            f"`{v.system}`",
        )
        for v in matrix.variants.values()
    ]
    return _table(("variant", "compute capability", "architecture", "GPUs", "system"), rows)


def versions(matrix: Matrix) -> str:
    """The version matrix: a row a release."""
    rows = [
        (
            f"**{r.name}**" + (" (default)" if r == matrix.default else ""),
            r.stack.python,
            r.stack.cuda,
            r.stack.torch,
            " and ".join(r.stack.cutlass) or "–",
            f"≥ {r.stack.driver}",
            f"≥ {r.glibc}",
            f"`{r.nixpkgs[:7]}`" if r.nixpkgs else "none: wheels only",
        )
        for r in matrix.releases.values()
    ]
    return _table(
        ("release (vLLM)", "Python", "CUDA", "torch", "CUTLASS", "driver", "glibc", "nixpkgs"), rows
    )


def names(matrix: Matrix) -> str:
    """The full names of the default release's variants."""
    rows = [(f"`{v.short}`", f"`{v.name(matrix.default)}`") for v in matrix.variants.values()]
    return _table(("short name", "full name: Nix package, Flox build, result link"), rows)


def code(matrix: Matrix) -> str:
    """How the code in vLLM's published libraries fits each variant of each release, in containers."""
    rows = []
    for release in matrix.newest_first:
        for short, variant in matrix.of(release).items():
            if held := offers.code(release, variant):
                facts = held.as_dict()
                counts = [str(facts[key]) for key in ("native", "same-major", "family", "jit", "none")]
                note = "" if held.usable else " (not offered)"
                rows.append((release.name, f"`{short}`{note}", str(variant.capability), *counts))
    head = ("release", "variant", "capability", "native", "same major", "family", "PTX only", "nothing")
    return _table(head, rows)


def known_advisories(matrix: Matrix) -> str:
    """A row a release: what is known about its vulnerabilities, from the files in `advisories/`."""
    rows = [(f"**{r.name}**", advisories.of(r.name).sentence) for r in matrix.releases.values()]
    return _table(("release (vLLM)", "advisories, never complete"), rows)


def exit_codes() -> str:
    """The exit codes of the command line."""
    return _table(("code", "meaning"), [(str(int(code)), code.meaning) for code in ExitCode])


def _tables(root: Path, matrix: Matrix) -> Mapping[str, Callable[[], str]]:
    """Every generated part by its name, for the checkout at `root`."""
    from vllm_variants.verify import evidence

    recorded = root / "docs" / "evidence"
    return {
        "variants": lambda: variants(matrix),
        "versions": lambda: versions(matrix),
        "code": lambda: code(matrix),
        "names": lambda: names(matrix),
        "advisories": lambda: known_advisories(matrix),
        "exit-codes": exit_codes,
        "runs": lambda: _table(*evidence.runs(recorded)),
        "outcomes": lambda: _table(*evidence.outcomes(recorded)),
        "first-calls": lambda: _table(*evidence.first_calls(recorded)),
        "sizes": lambda: _table(*measurements.sizes(root / "docs")),
        "containers": lambda: _table(*measurements.containers(root / "docs")),
    }


def refresh(text: str, tables: Mapping[str, Callable[[], str]], where: str) -> str:
    """`text`, of the file `where`, with every generated part made anew.

    Raises `InputError` for a part that is not in `tables`.
    """

    def part(match: re.Match[str]) -> str:
        name = match[2]
        if name not in tables:
            raise InputError(
                f"{where}: nothing generates {name!r}", hint=f"choose one of {', '.join(tables)}"
            )
        return f"{match[1]}{tables[name]()}\n{match[3]}"

    return _PART.sub(part, text)


def files(root: Path, matrix: Matrix) -> dict[Path, str]:
    """Every file with generated text → what it should hold."""
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    tables = _tables(root, matrix)
    made = {page: refresh(page.read_text(encoding="utf-8"), tables, page.name) for page in pages}
    return made | {root / path: text for path, text in flox.expressions(matrix).items()}


def _related(related: Sequence[Related]) -> str:
    return "".join(f"; {r.capability}¹: {', '.join(r.gpus)}" for r in related)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
