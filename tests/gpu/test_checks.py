"""Every GPU check of every result that fits a card of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_variants.verify import judgement as verdicts
from vllm_variants.verify import preflight, processes, running
from vllm_variants.verify.catalogue import Check

if TYPE_CHECKING:
    from conftest import Subject


def test_check(subject: Subject, check: Check, cards: tuple[str, ...], seed: int) -> None:
    """The outcome is what this SM must show with this release."""
    manifest = subject.result.manifest
    whole = processes.Subject(subject.result.python, preflight.facts(subject.result), cards)
    (outcome,) = running.run(whole, [check], running.Plan(seed))
    judged = verdicts.judge(check, outcome, release=manifest.release, sm=manifest.capability.sm)
    if judged.verdict in (verdicts.Verdict.SKIPPED, verdicts.Verdict.OPEN):
        pytest.skip(judged.sentence)
    if judged.verdict is verdicts.Verdict.FAILED:
        pytest.fail(f"{check.name}: {judged.sentence} (seed {seed})", pytrace=False)
