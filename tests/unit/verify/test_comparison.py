"""Two results against each other: same bits, or a reason why not."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_variants.verify import comparison
from vllm_variants.verify.comparison import Likeness


def outcome(**changes: Any) -> dict[str, Any]:
    case = {"case": "a", "digest": "x", "error": 1e-4, "deterministic": True} | changes.pop("case", {})
    whole = {"check": "norm.rms_norm", "status": "ok", "inputs": "i", "median_ms": 2.0, "first_ms": 8.0}
    return whole | {"cases": [case]} | changes


def test_identical_outputs_are_the_same_whatever_their_times() -> None:
    found = comparison.compare(outcome(), outcome(median_ms=3.0, first_ms=4.0))
    assert found.likeness is Likeness.SAME
    assert (found.ratio, found.first_ratio) == (1.5, 0.5)
    assert found.as_dict()["first_ms"] == [8.0, 4.0]
    assert found.as_dict()["median_ms"] == [2.0, 3.0]


def test_times_that_one_of_them_lacks_have_no_ratio() -> None:
    found = comparison.compare(outcome(median_ms=None), outcome(first_ms=None))
    assert (found.ratio, found.first_ratio) == (None, None)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            outcome(case={"digest": "y", "error": 2e-4}),
            "1 of 1 outputs differ, first a (errors 0.0001 and 0.0002)",
        ),
        (outcome(status="failed", reason="it crashed"), "ok here and failed there: it crashed"),
        (outcome(inputs="j"), "their inputs differ"),
        (outcome(case={"case": "b"}), "they tried different cases"),
    ],
)
def test_differences_are_named(other: dict[str, Any], says: str) -> None:
    found = comparison.compare(outcome(), other)
    assert found.likeness is Likeness.DIFFERENT
    assert says in found.sentence


def test_an_operator_that_varies_by_itself_is_not_held_to_the_bit() -> None:
    one = outcome(case={"deterministic": False})
    two = outcome(case={"digest": "y"})
    assert comparison.compare(one, two).likeness is Likeness.WITHIN


@pytest.mark.parametrize("where", ["here", "there"])
def test_what_one_of_them_skipped_is_no_difference(where: str) -> None:
    skipped = outcome(status="skipped", reason="the time of the whole run was over")
    both = (skipped, outcome()) if where == "here" else (outcome(), skipped)
    found = comparison.compare(*both)
    assert found.likeness is Likeness.UNTRIED
    assert found.sentence == f"skipped {where}: the time of the whole run was over"


def test_comparing_nothing_is_not_good() -> None:
    neither = outcome(status="unsupported", reason="not on 9.0")
    untried = comparison.compare(neither, neither)
    assert untried.likeness is Likeness.UNTRIED
    assert untried.sentence == "unsupported in both: not on 9.0"
    assert not comparison.good([untried])
    assert comparison.good([untried, comparison.compare(outcome(), outcome())])
    assert not comparison.good([comparison.compare(outcome(), outcome(inputs="j"))])
