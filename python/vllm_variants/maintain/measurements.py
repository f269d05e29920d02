"""Tables of what every variant weighs and holds, from what `bench/variants.py` wrote down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A head and rows."""

_DOCUMENT = "measurements-variants.json"
_FITS = ("native", "same-major", "family", "jit")
_RULES = ("images", "compress", "symbols", "files")


def sizes(docs: Path) -> Table:
    """Each variant's bytes as a share of what is installed, rule after rule, and the result's size."""
    head = ("release", "variant", "installed", "images", "+ zstd", "+ sections", "+ files")
    rows = [
        (
            release,
            variant,
            f"{facts['installed'] / 1e9:.2f} GB",
            *(f"{facts[rule] / facts['installed']:.3f}" for rule in _RULES),
            f"{facts['result'] / 1e9:.2f} GB, **{facts['ratio']:.3f}**",
            _native_size(facts),
        )
        for release, variant, facts in _variants(docs)
    ]
    return (*head, "+ bytecode: the result", "with `--native`"), rows


def containers(docs: Path) -> Table:
    """How each variant's containers are served, without and with `--native`, and what that takes."""
    head = ("release", "variant", "native", "same-major", "family", "PTX for the JIT", "audit")
    rows = [
        (
            release,
            variant,
            *(_count(facts["containers"].get(fit, 0)) for fit in _FITS),
            f"`{facts['verdict']}`",
            *_native_containers(facts.get("native", {})),
        )
        for release, variant, facts in _variants(docs)
    ]
    return (*head, "`--native`: native, PTX, audit", "PTX text", "CPU to compile it once"), rows


def _variants(docs: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    document = json.loads((docs / _DOCUMENT).read_text(encoding="utf-8"))
    for release, variants in document["rows"].items():
        for variant, facts in variants.items():
            yield release, variant, facts


def _native_size(facts: Mapping[str, Any]) -> str:
    native = facts.get("native", {})
    return f"{native['result'] / 1e9:.2f} GB, {native['ratio']:.3f}" if "result" in native else ""


def _native_containers(native: Mapping[str, Any]) -> tuple[str, str, str]:
    if not native:
        return "", "", ""
    made = ""
    if "containers" in native:
        held = native["containers"]
        made = f"{_count(held['native'])}, {_count(held['jit'])}, `{native['verdict']}`"
    known = native["cpu_seconds_known_for"] == native["compilations"]
    seconds = native["cpu_seconds"]
    took = (f"{seconds} s" if seconds < 90 else f"{seconds / 60:.0f} min") if known else ""
    return made, f"{native['ptx_bytes'] / 1e6:.0f} MB", took


def _count(number: int) -> str:
    return f"{number:,}" if number else "0"
