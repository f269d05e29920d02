"""Two results against each other: the same inputs, their outputs bit by bit, their times as ratios.

Every case of a check carries a digest of its outputs, and every check one of its inputs (made on
the CPU from the seed). An operator whose own two calls differ (atomic additions) cannot be held to
the bit: then both must be within their tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from vllm_variants.verify import running
from vllm_variants.verify.catalogue import Check
from vllm_variants.verify.processes import Subject
from vllm_variants.verify.running import Outcome, Plan


class Likeness(StrEnum):
    """How two results' outcomes of one check compare."""

    SAME = "same"  # every output is identical, bit for bit
    WITHIN = "within"  # the operator is not deterministic by itself; both are within tolerance
    DIFFERENT = "different"
    UNTRIED = "untried"  # not both ran it


@dataclass(frozen=True)
class Compared:
    """One check on both results; `ratio` is the other's median time over the first's."""

    check: str
    likeness: Likeness
    ratio: float | None
    first_ratio: float | None
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "check": self.check,
            "likeness": self.likeness.value,
            "ratio": self.ratio,
            "first_ratio": self.first_ratio,
            "sentence": self.sentence,
        }

    def line(self) -> str:
        """One line of plain text."""
        ratio = f"{self.ratio:.2f}×" if self.ratio else ""
        return f"{self.check:32} {self.likeness:10} {ratio:8} {self.sentence}"


def run(
    one: Subject, other: Subject, checks: Sequence[Check], plan: Plan
) -> Iterator[tuple[Outcome, Outcome]]:
    """Yield the two outcomes of every check as soon as both are known.

    Unless `plan` lets several checks share the GPU, the subjects take turns, check by check: neither
    has the GPU while the other is timed. Kept logs go to `this` and `other` in the plan's folder.
    """

    def outcomes(subject: Subject, name: str) -> Iterator[Outcome]:
        logs = plan.logs / name if plan.logs else None
        return running.run(subject, checks, replace(plan, ahead=1, logs=logs))

    here: dict[str, Outcome] = {}
    there: dict[str, Outcome] = {}
    # In the same order only if they run one by one.
    for first, second in zip(outcomes(one, "this"), outcomes(other, "other"), strict=True):
        here[first["check"]], there[second["check"]] = first, second
        for name in sorted(here.keys() & there.keys()):
            yield here.pop(name), there.pop(name)


def compare(one: Outcome, other: Outcome) -> Compared:
    """Hold the other result's outcome of a check against the first's."""
    name = one["check"]
    ratio = _ratio(one.get("median_ms"), other.get("median_ms"))
    first = _ratio(one.get("first_ms"), other.get("first_ms"))

    def found(likeness: Likeness, sentence: str) -> Compared:
        return Compared(name, likeness, ratio, first, sentence)

    statuses = one["status"], other["status"]
    if "skipped" in statuses:
        where, which = ("here", one) if statuses[0] == "skipped" else ("there", other)
        return found(Likeness.UNTRIED, f"skipped {where}: {which.get('reason') or 'without a reason'}")
    if statuses[0] != statuses[1]:
        reason = other.get("reason") or one.get("reason") or ""
        return found(Likeness.DIFFERENT, f"{statuses[0]} here and {statuses[1]} there: {reason}")
    if statuses[0] != "ok":
        return found(Likeness.UNTRIED, f"{statuses[0]} in both: {one.get('reason') or 'without a reason'}")
    if one.get("inputs") != other.get("inputs"):
        return found(Likeness.DIFFERENT, "their inputs differ, so nothing was compared")
    return found(*_cases(one.get("cases") or (), other.get("cases") or ()))


def _cases(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> tuple[Likeness, str]:
    if [each["case"] for each in one] != [each["case"] for each in other]:
        return Likeness.DIFFERENT, "they tried different cases"
    unequal = [(a, b) for a, b in zip(one, other, strict=True) if a["digest"] != b["digest"]]
    if not unequal:
        return Likeness.SAME, f"{len(one)} of {len(one)} outputs identical"
    firm = [(a, b) for a, b in unequal if a.get("deterministic", True) and b.get("deterministic", True)]
    if firm:
        a, b = firm[0]
        errors = f"errors {a['error']} and {b['error']}"
        return Likeness.DIFFERENT, f"{len(firm)} of {len(one)} outputs differ, first {a['case']} ({errors})"
    return Likeness.WITHIN, f"{len(unequal)} of {len(one)} vary from call to call; all within tolerance"


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(other / one, 3) if one and other is not None else None


def summary(compared: Sequence[Compared]) -> str:
    """One line for a person."""
    parts = []
    for likeness, words in (
        (Likeness.SAME, "identical"),
        (Likeness.WITHIN, "within tolerance"),
        (Likeness.DIFFERENT, "different"),
        (Likeness.UNTRIED, "not tried"),
    ):
        count = sum(each.likeness is likeness for each in compared)
        if count:
            parts.append(f"{count} {words}")
    ratios = sorted(each.ratio for each in compared if each.ratio is not None)
    if ratios:
        parts.append(f"times {ratios[0]:.2f}–{ratios[-1]:.2f}×, median {ratios[len(ratios) // 2]:.2f}×")
    return ", ".join(parts)


def good(compared: Sequence[Compared]) -> bool:
    """Nothing differs, and something was compared."""
    likenesses = {each.likeness for each in compared}
    return Likeness.DIFFERENT not in likenesses and bool(likenesses & {Likeness.SAME, Likeness.WITHIN})
