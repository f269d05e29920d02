"""Two results against each other: the same inputs, their outputs bit by bit, their times as ratios.

Every case of a check carries a digest of its outputs, and every check one of its inputs (made on
the CPU from the seed). An operator whose own two calls differ (atomic additions) cannot be held to
the bit: then both must be within their tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from vllm_variants.verify import running
from vllm_variants.verify.catalogue import Check
from vllm_variants.verify.check_process import CheckedResult
from vllm_variants.verify.running import CheckOutcome, RunOptions


class Likeness(StrEnum):
    """How two results' outcomes of one check compare."""

    SAME = "same"  # every output is identical, bit for bit
    WITHIN = "within"  # the operator is not deterministic by itself; both are within tolerance
    DIFFERENT = "different"
    UNTRIED = "untried"  # not both ran it


Times = tuple[float | None, float | None]
"""Milliseconds of the same call in both results, None where it was not timed."""


@dataclass(frozen=True)
class ComparedCheck:
    """One check on both results: how its outputs compare, and the times of its calls.

    `median` and `first` are (milliseconds here, milliseconds in the other result), the median of the
    cases' calls and the first call. `outcomes` are what both runs showed.
    """

    check: str
    likeness: Likeness
    sentence: str
    median: Times
    first: Times
    outcomes: tuple[CheckOutcome, CheckOutcome] = field(repr=False)

    @property
    def ratio(self) -> float | None:
        """The other result's median time over this one's."""
        return _ratio(self.median)

    @property
    def first_ratio(self) -> float | None:
        """The other result's first call over this one's."""
        return _ratio(self.first)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON; times in milliseconds."""
        return {
            "check": self.check,
            "likeness": self.likeness.value,
            "ratio": self.ratio,
            "first_ratio": self.first_ratio,
            "sentence": self.sentence,
            "median_ms": list(self.median),
            "first_ms": list(self.first),
        }

    def line(self) -> str:
        """One line of plain text."""
        ratio = f"{self.ratio:.2f}×" if self.ratio else ""
        return f"{self.check:32} {self.likeness:10} {ratio:8} {self.sentence}"


def run_and_compare(
    result: CheckedResult, other: CheckedResult, checks: Sequence[Check], options: RunOptions
) -> Iterator[ComparedCheck]:
    """Run every check on both results, and yield each as soon as both outcomes are known.

    Unless `options` let several checks share the GPU, the results take turns, check by check: neither
    has the GPU while the other is timed. Kept logs go to `this` and `other` in the options' folder.
    """

    def outcomes(checked: CheckedResult, name: str) -> Iterator[CheckOutcome]:
        logs = options.logs / name if options.logs else None
        return running.run(checked, checks, replace(options, ahead=1, logs=logs))

    here: dict[str, CheckOutcome] = {}
    there: dict[str, CheckOutcome] = {}
    # In the same order only if they run one by one.
    for first, second in zip(outcomes(result, "this"), outcomes(other, "other"), strict=True):
        here[first["check"]], there[second["check"]] = first, second
        for name in sorted(here.keys() & there.keys()):
            yield compare(here.pop(name), there.pop(name))


def compare(here: CheckOutcome, there: CheckOutcome) -> ComparedCheck:
    """Hold the other result's outcome of a check, `there`, against this one's."""
    likeness, sentence = _likeness(here, there)
    return ComparedCheck(
        here["check"],
        likeness,
        sentence,
        median=(here.get("median_ms"), there.get("median_ms")),
        first=(here.get("first_ms"), there.get("first_ms")),
        outcomes=(here, there),
    )


def _likeness(here: CheckOutcome, there: CheckOutcome) -> tuple[Likeness, str]:
    statuses = here["status"], there["status"]
    if "skipped" in statuses:
        where, skipped = ("here", here) if statuses[0] == "skipped" else ("there", there)
        return Likeness.UNTRIED, f"skipped {where}: {skipped.get('reason') or 'without a reason'}"
    if statuses[0] != statuses[1]:
        reason = there.get("reason") or here.get("reason") or ""
        return Likeness.DIFFERENT, f"{statuses[0]} here and {statuses[1]} there: {reason}"
    if statuses[0] != "ok":
        return Likeness.UNTRIED, f"{statuses[0]} in both: {here.get('reason') or 'without a reason'}"
    if here.get("inputs") != there.get("inputs"):
        return Likeness.DIFFERENT, "their inputs differ, so nothing was compared"
    return _cases(here.get("cases") or (), there.get("cases") or ())


def _cases(here: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]) -> tuple[Likeness, str]:
    if [case["case"] for case in here] != [case["case"] for case in there]:
        return Likeness.DIFFERENT, "they tried different cases"
    count = len(here)
    unequal = [(a, b) for a, b in zip(here, there, strict=True) if a["digest"] != b["digest"]]
    if not unequal:
        return Likeness.SAME, f"{count} of {count} outputs identical"
    firm = [(a, b) for a, b in unequal if a.get("deterministic", True) and b.get("deterministic", True)]
    if firm:
        a, b = firm[0]
        errors = f"errors {a['error']} and {b['error']}"
        return Likeness.DIFFERENT, f"{len(firm)} of {count} outputs differ, first {a['case']} ({errors})"
    return Likeness.WITHIN, f"{len(unequal)} of {count} vary from call to call; all within tolerance"


def _ratio(times: Times) -> float | None:
    here, there = times
    return round(there / here, 3) if here and there is not None else None


def summary(compared: Sequence[ComparedCheck]) -> str:
    """One line for a person."""
    parts = []
    for likeness, words in (
        (Likeness.SAME, "identical"),
        (Likeness.WITHIN, "within tolerance"),
        (Likeness.DIFFERENT, "different"),
        (Likeness.UNTRIED, "not tried"),
    ):
        count = sum(check.likeness is likeness for check in compared)
        if count:
            parts.append(f"{count} {words}")
    ratios = sorted(check.ratio for check in compared if check.ratio is not None)
    if ratios:
        parts.append(f"times {ratios[0]:.2f}–{ratios[-1]:.2f}×, median {ratios[len(ratios) // 2]:.2f}×")
    return ", ".join(parts)


def good(compared: Sequence[ComparedCheck]) -> bool:
    """Nothing differs, and something was compared."""
    likenesses = {check.likeness for check in compared}
    return Likeness.DIFFERENT not in likenesses and bool(likenesses & {Likeness.SAME, Likeness.WITHIN})
