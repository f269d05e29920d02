"""What `vllm-variants audit --all-sms` prints for people: libraries and features by SM, in 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_variants.cli.audit_display import narrow, rows_of, short
from vllm_variants.cli.output import out, say

if TYPE_CHECKING:
    from rich.table import Table

    from vllm_variants.audit.every_sm import SmMatrix
    from vllm_variants.audit.judging import FitCounts, JudgedFeature

_WORDS = {"native": "own", "same-major": "major", "family": "family", "jit": "JIT", "none": "–"}
_STATES = {"runs": "yes", "unsupported": "–", "driver": "driver", "missing": "NO"}
LEGEND = (
    "own: machine code for exactly this SM · major, family: for an earlier one, which it runs",
    "JIT: PTX that the driver compiles first, about so long on one core · –: nothing, not made for it",
    "stub: slimming dropped its code",
)


def show(found: SmMatrix) -> None:
    """Print the answers, then features by SM, then libraries by SM."""
    sms = [device.sm for device in found.devices]
    for sm, given in found.answers().items():
        out.print(f"{sm:6} {given.sentence}")
    console = narrow()
    rows = _table("feature", sms)
    for fates in found.features().values():
        name = next(iter(fates.values())).name
        rows.add_row(name, *(_feature(fates.get(sm)) for sm in sms))
    out.print()
    console.print(rows)
    from vllm_variants.audit.every_sm import cells

    rows = _table("library", sms)
    for library in found.libraries:
        if library.problem:
            say(f"{library.path}: {library.problem}")
        elif library.containers:
            rows.add_row(short(library.path), *(_cell(counts) for counts in cells(library, found.devices)))
    out.print()
    console.print(rows)
    for line in LEGEND:
        out.print(line)


def _table(first: str, sms: list[str]) -> Table:
    rows = rows_of(first, *sms)
    rows.padding = (0, 1, 0, 0)
    return rows


def _cell(counts: FitCounts) -> str:
    fit = str(counts.fit)
    if not counts.total and counts.stubs:
        return "stub"
    return _jit(counts) if fit == "jit" else _WORDS[fit]


def _feature(fate: JudgedFeature | None) -> str:
    if fate is None:
        return "stub"
    state = str(fate.state)
    return _jit(fate.counts) if state == "waits" else _STATES[state]


def _jit(counts: FitCounts) -> str:
    return f"JIT {seconds(counts.jit_seconds) if counts.timed else '?'}"


def seconds(count: float) -> str:
    """In a few letters: `<1s`, `12s`, `4m`, `2h`."""
    if count < 1:
        return "<1s"
    if count < 100:
        return f"{count:.0f}s"
    return f"{count / 60:.0f}m" if count < 6000 else f"{count / 3600:.0f}h"
