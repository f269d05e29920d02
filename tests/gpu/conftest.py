"""The checks of `vllm-variants verify` as pytest tests: every result × every check.

    pytest tests/gpu                        every ./result-* whose variant fits a card of this machine
    pytest tests/gpu --variant sm90         only results of this variant
    pytest tests/gpu --result PATH          this result, wherever it is
    pytest tests/gpu -m sm90 -k 'moe or fa3'
    pytest tests/gpu -n auto                one worker a card, each with its own card

On a machine that cannot run any of them there is one skipped test, and its reason says why.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_variants.errors import Error
from vllm_variants.machine import gpus
from vllm_variants.model import matrix
from vllm_variants.model.results import Result
from vllm_variants.verify import catalogue as expectations
from vllm_variants.verify import preflight
from vllm_variants.verify.catalogue import Check


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vllm-variants")
    group.addoption("--result", action="append", default=[], help="a result to check, instead of ./result-*")
    group.addoption("--variant", action="append", default=[], help="check only results of this variant")
    group.addoption("--seed", type=int, default=None, help="the inputs' seed; a fresh one if absent")


def pytest_configure(config: pytest.Config) -> None:
    for sm in dict.fromkeys(variant.capability.sm for variant in matrix.load().variants.values()):
        config.addinivalue_line("markers", f"{sm}: needs a GPU of {sm}")


@dataclass(frozen=True)
class Subject:
    """A result that fits this machine, and the indices of the cards that it is built for."""

    result: Result
    cards: tuple[str, ...]

    @property
    def id(self) -> str:
        """The variant's short name and the release, for test ids."""
        return f"{self.result.manifest.short}-{self.result.manifest.release}"


def _subjects(config: pytest.Config) -> tuple[list[Subject], list[str]]:
    """(results to check, reasons why others are not), for the options given."""
    wanted = {matrix.load().parse(text).variant.short for text in config.getoption("--variant", [])}
    given = [Path(each) for each in config.getoption("--result", [])]
    paths = given or sorted(each for each in Path.cwd().glob("result-*") if each.is_dir())
    machine = gpus.machine()
    subjects, reasons = [], []
    for path in paths:
        try:
            result = preflight.result(path)
            if wanted and result.manifest.short not in wanted:
                continue
            cards = preflight.fitting(result, machine)
        except Error as error:
            reasons.append(error.message)
            continue
        subjects.append(Subject(result, preflight.devices(cards)))
    if not machine.gpus:
        reasons = [f"there is no GPU: {machine.problem or 'the driver sees none'}"]
    elif not paths:
        reasons = ["there is no ./result-* here: build one with vllm-variants build"]
    return subjects, list(dict.fromkeys(reasons)) or ["no result is of the variant asked for"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" not in metafunc.fixturenames:
        return
    subjects, reasons = _subjects(metafunc.config)
    if not subjects:
        mark = pytest.mark.skip(reason="; ".join(reasons))
        metafunc.parametrize(
            "subject,check", [pytest.param(None, None, marks=[mark, pytest.mark.gpu], id="none")]
        )
        return
    metafunc.parametrize(
        "subject,check",
        [
            pytest.param(
                subject,
                check,
                id=f"{subject.id}-{check.name}",
                marks=[pytest.mark.gpu, getattr(pytest.mark, subject.result.manifest.capability.sm)],
            )
            for subject in subjects
            for check in expectations.read()
        ],
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one worker a card that some result fits."""
    subjects, _ = _subjects(config)
    return max((len(subject.cards) for subject in subjects), default=1)


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """One seed for the session, printed with every failure by the test that uses it."""
    given = request.config.getoption("--seed", None)
    return random.SystemRandom().randrange(1 << 31) if given is None else int(given)


@pytest.fixture
def cards(subject: Subject, check: Check) -> Iterator[tuple[str, ...]]:
    """The cards of this test: the worker's own first, and nobody else's while it runs.

    A check that wants two cards waits until its neighbour is free; more workers than cards wait too.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = int(worker) % len(subject.cards)
    mine = (subject.cards[first:] + subject.cards[:first])[: check.gpus]
    with contextlib.ExitStack() as stack:
        for card in sorted(mine):  # always in this order, so that two tests never wait for each other
            lock = Path(tempfile.gettempdir(), f"vllm-variants-{os.getuid()}-{card}.lock")
            file = stack.enter_context(lock.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield mine
