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
from vllm_variants.verify import catalogue, preflight
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
class FittingResult:
    """A result that fits this machine, and the indices of the cards that it is built for."""

    result: Result
    cards: tuple[str, ...]

    @property
    def id(self) -> str:
        """The variant's short name and the release, for test ids."""
        return f"{self.result.manifest.short}-{self.result.manifest.release}"


def _fitting_results(config: pytest.Config) -> tuple[list[FittingResult], list[str]]:
    """(results to check, reasons why others are not), for the options given."""
    requested = {matrix.load().parse(text).variant.short for text in config.getoption("--variant", [])}
    given = [Path(path) for path in config.getoption("--result", [])]
    paths = given or sorted(path for path in Path.cwd().glob("result-*") if path.is_dir())
    machine = gpus.machine()
    fitting_results, reasons = [], []
    for path in paths:
        try:
            result = preflight.result(path)
            if requested and result.manifest.short not in requested:
                continue
            cards = preflight.fitting(result, machine)
        except Error as error:
            reasons.append(error.message)
            continue
        fitting_results.append(FittingResult(result, preflight.devices(cards)))
    if not machine.gpus:
        reasons = [f"there is no GPU: {machine.problem or 'the driver sees none'}"]
    elif not paths:
        reasons = ["there is no ./result-* here: build one with vllm-variants build"]
    return fitting_results, list(dict.fromkeys(reasons)) or ["no result is of the variant asked for"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fitting" not in metafunc.fixturenames:
        return
    fitting_results, reasons = _fitting_results(metafunc.config)
    if not fitting_results:
        mark = pytest.mark.skip(reason="; ".join(reasons))
        metafunc.parametrize(
            "fitting,check", [pytest.param(None, None, marks=[mark, pytest.mark.gpu], id="none")]
        )
        return
    metafunc.parametrize(
        "fitting,check",
        [
            pytest.param(
                fitting,
                check,
                id=f"{fitting.id}-{check.name}",
                marks=[pytest.mark.gpu, getattr(pytest.mark, fitting.result.manifest.capability.sm)],
            )
            for fitting in fitting_results
            for check in catalogue.read()
        ],
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one worker a card that some result fits."""
    fitting_results, _ = _fitting_results(config)
    return max((len(fitting.cards) for fitting in fitting_results), default=1)


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """One seed for the session, printed with every failure by the test that uses it."""
    given = request.config.getoption("--seed", None)
    return random.SystemRandom().randrange(1 << 31) if given is None else int(given)


@pytest.fixture
def cards(fitting: FittingResult, check: Check) -> Iterator[tuple[str, ...]]:
    """The cards of this test: the worker's own first, and nobody else's while it runs.

    A check that wants two cards waits until its neighbour is free; more workers than cards wait too.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = int(worker) % len(fitting.cards)
    own = (fitting.cards[first:] + fitting.cards[:first])[: check.gpus]
    with contextlib.ExitStack() as stack:
        for card in sorted(own):  # always in this order, so that two tests never wait for each other
            lock = Path(tempfile.gettempdir(), f"vllm-variants-{os.getuid()}-{card}.lock")
            file = stack.enter_context(lock.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield own
