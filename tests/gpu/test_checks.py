"""Every GPU check of every result that fits a card of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vllm_variants.errors import Error
from vllm_variants.machine.gpus import Gpu
from vllm_variants.verify import cards as locks
from vllm_variants.verify import judgement, preflight, running
from vllm_variants.verify.catalogue import Check

if TYPE_CHECKING:
    from conftest import FittingResult


def test_check(fitting: FittingResult, check: Check, cards: tuple[Gpu, ...], seed: int) -> None:
    """The outcome is what this SM must show with this release."""
    manifest = fitting.result.manifest
    checked = preflight.checked_result(fitting.result, cards)
    (outcome,) = running.run(checked, [check], running.RunOptions(seed))
    judged = judgement.judge(check, outcome, release=manifest.release, sm=manifest.capability.sm)
    if judged.judgement in (judgement.Judgement.SKIPPED, judgement.Judgement.OPEN):
        pytest.skip(judged.sentence)
    if judged.judgement is judgement.Judgement.FAILED:
        try:
            locks.require(cards, "while this check ran")
        except Error as error:
            pytest.fail(f"{check.name}: {error.message}", pytrace=False)
        pytest.fail(f"{check.name}: {judged.sentence} (seed {seed})", pytrace=False)
