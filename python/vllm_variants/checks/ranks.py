"""A check on several cards: one process a card, all of them doing the same cases in step.

Each process is a rank: it has a `Run` of its own on its own card, and its cases are put together to
those of the check: an error is that of the worst rank, a time that of the slowest, and a digest is over
the outputs of all. Whatever ends one rank ends the others, which would wait for it in a collective.

NVLink multicast stays off (`multicast.py`).
"""

from __future__ import annotations

import datetime
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypedDict

import torch

from . import checking
from .checking import Run, Skipped, Unsupported, Wrong
from .comparing import Case
from .multicast import MULTICAST_OFF, ONE_HOST

GRACE = 5.0  # seconds that the others may go on once one rank has failed
COLLECTIVE = 300  # seconds after which torch gives up waiting for a rank


@dataclass(frozen=True)
class Rank:
    """One of `world` processes: what it checks with, and its number, which is its card's index too."""

    run: Run
    number: int
    world: int

    @property
    def device(self) -> torch.device:
        """Its card; the CPU in a dry run."""
        return torch.device("cpu") if self.run.dry else torch.device("cuda", self.number)

    def parts(
        self, *shape: int, dtype: torch.dtype, low: int | None = None, high: int = 100
    ) -> list[torch.Tensor]:
        """A CPU tensor for every rank, the same in all of them: normal, or integers in [low, high)."""
        return [self._part(shape, dtype, low, high) for _ in range(self.world)]

    def _part(self, shape: Sequence[int], dtype: torch.dtype, low: int | None, high: int) -> torch.Tensor:
        if low is None:
            part = torch.randn(*shape, generator=self.run.generator).to(dtype)
        else:
            part = torch.randint(low, high, tuple(shape), generator=self.run.generator).to(dtype)
        self.run.count(part)
        return part


Body = Callable[[Rank], None]


class Report(TypedDict):
    """What a rank sends when it is done: how it went, and everything that its `Run` holds."""

    status: checking.Status
    reason: str | None
    cases: list[Case]
    notes: dict[str, Any]
    inputs: str


@dataclass(frozen=True)
class _Order:
    """What the process of a rank is told."""

    body: Body
    world: int
    folder: str
    name: str
    seed: int
    facts: dict[str, Any]
    dry: bool


def cards() -> int:
    """How many cards this process may use."""
    count: int = torch.cuda.device_count()
    return count


def in_step(run: Run, world: int, body: Body, seconds: float) -> None:
    """Have `world` processes, one a card, run `body`, and add their cases and facts to the check's.

    `body` is a function of a module of this folder. Raises `Wrong` in a sentence where a rank fails, dies or
    is not done after `seconds`; `Skipped` or `Unsupported` where one says so.
    """
    with tempfile.TemporaryDirectory() as folder:
        order = _Order(body, world, folder, run.name, run.seed, dict(run.facts), run.dry)
        reports = _reports(order, seconds)
    if len({report["inputs"] for report in reports}) != 1 or len({len(r["cases"]) for r in reports}) != 1:
        raise Wrong("the ranks did not do the same cases with the same inputs")
    run.count(torch.frombuffer(bytearray.fromhex(reports[0]["inputs"]), dtype=torch.uint8))
    run.cases += [merged(cases) for cases in zip(*(report["cases"] for report in reports), strict=True)]
    run.fact(**reports[0]["notes"])


def merged(cases: Sequence[Case]) -> Case:
    """One case of what the ranks made of it; the kernels are those of the first."""
    worst = max(cases, key=_badness)
    whole = hashlib.sha256("".join(case["digest"] for case in cases).encode()).hexdigest()[:32]
    firsts = [case["first_ms"] for case in cases if case["first_ms"] is not None]
    case: Case = {
        **worst,
        "ok": all(case["ok"] for case in cases),
        "first_ms": max(firsts, default=None),
        "digest": whole,
        "deterministic": all(case["deterministic"] for case in cases),
    }
    if "median_ms" in case:
        case["median_ms"] = max(case.get("median_ms", 0.0) for case in cases)
    if "kernels" in case:
        case["kernels"] = cases[0].get("kernels")
    return case


def _badness(case: Case) -> tuple[bool, float]:
    error = case["error"]
    return not case["ok"], float("inf") if isinstance(error, str) else error


# ── the check's own process ──


def _reports(order: _Order, seconds: float) -> list[Report]:
    """Start the ranks, and return what each of them reports; raises for the first that has no good one."""
    with _started(order) as ranks:
        reports: dict[int, Report] = {}
        deadline = time.monotonic() + seconds
        while len(reports) < len(ranks):
            pipes = {pipe: number for number, (_, pipe) in enumerate(ranks) if number not in reports}
            ready = wait(list(pipes), max(0.0, deadline - time.monotonic()))
            for pipe in ready:
                assert isinstance(pipe, Connection)
                report = _received(pipe, ranks[pipes[pipe]][0])
                reports[pipes[pipe]] = report
                if report["status"] != "ok":
                    deadline = min(deadline, time.monotonic() + GRACE)
            if not ready:
                break
        _raise_for(reports, order.world, seconds)
        return [reports[number] for number in range(order.world)]


@contextmanager
def _started(order: _Order) -> Iterator[list[tuple[SpawnProcess, Connection]]]:
    """The processes of the ranks, each with the end of a pipe; none outlives the context."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    ranks: list[tuple[SpawnProcess, Connection]] = []
    try:
        for number in range(order.world):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(order, number, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen here
            ranks.append((process, ours))
        yield ranks
    finally:
        for process, _ in ranks:
            process.join(0.5)
            process.kill()
        for process, pipe in ranks:
            process.join(10)
            pipe.close()


def _received(pipe: Connection, process: SpawnProcess) -> Report:
    """What a rank sent; where it died without a word, a report that says so."""
    try:
        report: Report = pipe.recv()
    except (EOFError, OSError):
        process.join(10)
        code = process.exitcode
        how = f"ended with status {code}" if code is None or code >= 0 else f"crashed ({_signal(-code)})"
        return {"status": "failed", "reason": f"its process {how}", "cases": [], "notes": {}, "inputs": ""}
    return report


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _raise_for(reports: dict[int, Report], world: int, seconds: float) -> None:
    """Raise for the worst of the reports, unless all are there and well."""
    for status, kind in (("failed", Wrong), ("unsupported", Unsupported), ("skipped", Skipped)):
        for number, report in sorted(reports.items()):
            if report["status"] == status:
                raise kind(f"card {number} of {world}: {report['reason'] or status}")
    late = [str(number) for number in range(world) if number not in reports]
    if late:
        raise Wrong(f"card {', '.join(late)} of {world} did not answer within {seconds:.0f} seconds")


# ── the process of a rank ──


def _rank(order: _Order, number: int, pipe: Connection) -> None:
    """Run the order's body as rank `number`, send the report, and end without tearing anything down."""
    os.environ.update(MULTICAST_OFF | ONE_HOST)
    run = Run(order.name, order.seed, order.facts, order.dry)

    def work(run: Run) -> None:
        _join(order, number)
        order.body(Rank(run, number, order.world))
        torch.distributed.barrier()  # nobody goes while another may still read its memory

    status, reason = checking.status_of(run, work, judged=False)
    pipe.send(
        Report(status=status, reason=reason, cases=run.cases, notes=run.notes, inputs=run.inputs_digest)
    )
    pipe.close()
    os._exit(0)


def _join(order: _Order, number: int) -> None:
    """Join the group of all ranks: NCCL with gloo beside it, as vLLM has it; dry, gloo alone."""
    method = f"file://{Path(order.folder, 'rendezvous')}"
    patience = datetime.timedelta(seconds=COLLECTIVE)
    if order.dry:
        torch.distributed.init_process_group(
            "gloo", init_method=method, rank=number, world_size=order.world, timeout=patience
        )
        return
    torch.cuda.set_device(number)
    from vllm.distributed.parallel_state import init_distributed_environment

    init_distributed_environment(order.world, number, method, number, "nccl", patience)
