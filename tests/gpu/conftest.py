"""The checks of `vllm-variants verify` as pytest tests: every result × every check.

    pytest tests/gpu                        every ./result-* whose variant fits a card of this machine
    pytest tests/gpu --variant sm90         only results of this variant
    pytest tests/gpu --result PATH          this result, wherever it is
    pytest tests/gpu -m sm90 -k 'moe or fa3'
    pytest tests/gpu -n auto                one worker a card, none used by two at once

A check of two cards waits until both are free. In a host of several kinds of cards each result goes to those
that it fits. On a machine that cannot run any of them there is one skipped test, and its reason says why.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vllm_variants.errors import Error
from vllm_variants.machine import gpus
from vllm_variants.machine.gpus import Gpu, Machine
from vllm_variants.model import matrix
from vllm_variants.model.results import Result
from vllm_variants.verify import cards as locks
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
    """A result that fits this machine, and the cards that it is built for."""

    result: Result
    cards: tuple[Gpu, ...]

    @property
    def id(self) -> str:
        """The variant's short name and the release, for test ids."""
        return f"{self.result.manifest.short}-{self.result.manifest.release}"


def _machine(config: pytest.Config) -> Machine:
    """The machine as the run found it: a worker of pytest-xdist is told, so that all collect the same."""
    given = getattr(config, "workerinput", {}).get("vllm_variants_machine")
    return Machine.from_dict(given) if given else gpus.machine()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker which machine this is."""
    node.workerinput["vllm_variants_machine"] = _machine(node.config).as_dict()


def _fitting_results(config: pytest.Config) -> tuple[list[FittingResult], list[str]]:
    """(results to check, reasons why others are not), for the options given."""
    requested = {matrix.load().parse(text).variant.short for text in config.getoption("--variant", [])}
    given = [Path(path) for path in config.getoption("--result", [])]
    paths = given or sorted(path for path in Path.cwd().glob("result-*") if path.is_dir())
    machine = _machine(config)
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
        fitting_results.append(FittingResult(result, cards))
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
    """`-n auto`: one worker for every card that some result fits."""
    fitting_results, _ = _fitting_results(config)
    return len({card.uuid for fitting in fitting_results for card in fitting.cards}) or 1


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """One seed for the session, printed with every failure by the test that uses it."""
    given = request.config.getoption("--seed", None)
    return random.SystemRandom().randrange(1 << 31) if given is None else int(given)


@pytest.fixture
def cards(fitting: FittingResult, check: Check) -> Iterator[tuple[Gpu, ...]]:
    """The cards of this test, and nobody else's while it runs: a free one, or as many as the check uses.

    More workers than cards wait, and so does a check until all of its cards are free. Cards of which the
    check needs more than there are: all of them, and the check is skipped.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    try:
        gone = locks.lost(fitting.cards)
        left = tuple(card for card in fitting.cards if card not in gone)
        if len(left) < check.gpus <= len(fitting.cards):
            locks.require(fitting.cards, "before this check began")
        if gone:
            warnings.warn(f"{locks.names(gone)} was lost since this run began", stacklevel=1)
        count = max(1, len(check.share(preflight.devices(left))))
        with locks.reserved(left, count, int(worker)) as own:
            locks.require(own, "before this check began")
            yield own
    except Error as error:
        pytest.fail(f"{check.name}: {error.message}", pytrace=False)
