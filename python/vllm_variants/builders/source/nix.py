"""The `nix` builder: every requested variant compiled from source by the machine's own Nix.

    evaluate → plan memory → one `nix build` for all → per variant: audit → link → push

Nix does what it is good at (order, sharing, remote machines, caches). This reads its events, reports at
once which build failed and why, and links nothing that was not audited.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from vllm_variants.builders import display
from vllm_variants.builders.outcomes import Done, Outcome, Status, outcome_of, skipped
from vllm_variants.builders.source import logs as build_logs
from vllm_variants.builders.source.finishing import Finisher, blocked_links
from vllm_variants.builders.source.logs import BuildLogs
from vllm_variants.builders.source.options import Options, Show
from vllm_variants.builders.source.watch import Cause, Watch
from vllm_variants.errors import Error, Interrupted
from vllm_variants.machine import memory
from vllm_variants.machine.memory import JobLimits
from vllm_variants.model.requests import Request
from vllm_variants.nix import evaluation
from vllm_variants.nix.command import Configuration, Nix
from vllm_variants.nix.evaluation import Derivation, Refusal
from vllm_variants.nix.events import parse
from vllm_variants.nix.failures import failure, out_of_memory, unbuildable
from vllm_variants.nix.progress import Build, Copy
from vllm_variants.system import process
from vllm_variants.system.progress import Say

FINISHING = 2
"""Outputs audited, linked and pushed at once, beside the builds."""


@dataclass(frozen=True)
class NixBuilder:
    """The `nix` builder: one machine's Nix and how to use it."""

    nix: Nix
    options: Options = field(default_factory=Options)
    show: Show | None = None

    def build_all(
        self, requests: Sequence[Request], say: Say, done: Done = lambda outcome: None
    ) -> list[Outcome]:
        """Build every request; one outcome each, in their order, and to `done` as each is known.

        Raises `Interrupted` when asked to stop; `done` has then had the outcome of every variant as well.
        """
        if untracked := evaluation.untracked(self.nix.flake):
            some = ", ".join(untracked[:3]) + (" …" if len(untracked) > 3 else "")
            say(f"Nix does not see files that git does not track ({some}): `git add -N` them if they matter")
        blocked = blocked_links(requests)
        free = [request for request in requests if request not in blocked]
        if free:
            say(f"evaluating {', '.join(request.variant.short for request in free)} …")
        evaluated: dict[Request, Derivation | Refusal] = {
            item.request: item for item in evaluation.evaluate(self.nix, free)
        }
        evaluated |= {request: Refusal(request, error) for request, error in blocked.items()}
        batch = Batch(self.nix, self.options, self.show, say, done)
        return batch.run([evaluated[request] for request in requests])


class Batch:
    """Takes evaluated variants to outcomes. Not to be used twice."""

    def __init__(
        self, nix: Nix, options: Options, show: Show | None, say: Say, done: Callable[[Outcome], None]
    ) -> None:
        self._nix, self._options, self._show = nix, options, show
        self._say, self._done = say, done
        self._stopped = threading.Event()
        self._finisher = Finisher(nix, options.cache, self._stopped.is_set)
        self._pending: dict[str, Derivation] = {}  # by derivation
        self._finishing: dict[Derivation, Future[Outcome]] = {}
        self._outcomes: dict[str, Outcome] = {}  # by full name
        self._causes: dict[str, Cause] = {}  # by derivation
        self._attempt = 1
        self._watch: Watch | None = None
        self._configured = Configuration()

    def run(self, evaluated: Sequence[Derivation | Refusal]) -> list[Outcome]:
        """Build and finish everything that evaluated; outcomes in the order of `evaluated`."""
        for item in evaluated:
            if isinstance(item, Refusal):
                self._end(outcome_of(item.request, Status.FAILED, error=item.error))
            else:
                self._pending[item.drv] = item
        self._pool = ThreadPoolExecutor(max_workers=FINISHING)
        try:
            self._settle(self._pending.values(), "already built")
            self._refuse_unbuildable()
            if self._pending:
                self._build()
            self._collect(wait=True)
        except Interrupted:
            self._stop()
            raise
        finally:
            self._pool.shutdown(cancel_futures=True)
        return [self._outcomes[item.request.name] for item in evaluated]

    # ── building ──

    def _build(self) -> None:
        options = self._options
        plan = memory.limits_here(len(self._pending), cores=options.cores, max_jobs=options.max_jobs)
        self._say(plan.sentence())
        self._warn()
        with BuildLogs(build_logs.new_folder(options.logs), _names(self._pending.values())) as logs:
            self._say(f"full logs: {logs.folder}")
            for attempt in range(1, options.retries + 2):
                self._attempt = attempt
                if attempt > 1:
                    plan = self._plan_again(plan)
                self._build_pending(plan, logs)
                if not self._pending:
                    return
            for derivation in list(self._pending.values()):
                self._end(self._failed(derivation, plan, logs))

    def _warn(self) -> None:
        """Tell what is known to go wrong, before hours are spent."""
        from vllm_variants.nix import findings

        for finding in findings.before_build(self._nix, self._configured, len(self._pending)):
            if finding.hint:
                self._say(f"note: {finding.about}: {finding.text}\nhint: {finding.hint}")

    def _build_pending(self, plan: JobLimits, logs: BuildLogs) -> None:
        """Build what is pending; go on with the rest where Nix gave up on all because of some.

        An error that belongs to no build (a missing feature) ends Nix, `--keep-going` or not.
        """
        left = dict(self._pending)
        while left:
            watch = self._watch = Watch(self._nix, _names(left.values()), logs, self._say)
            self._nix_build(plan, left, watch)
            self._settle([derivation for drv, derivation in left.items() if drv in self._pending])
            causes = {drv: watch.cause(drv) for drv in left if drv in self._pending}
            self._causes |= causes
            rest = {drv: left[drv] for drv, cause in causes.items() if not cause}
            if len(rest) in (0, len(left)) or not self._options.keep_going:
                errors = watch.tracker.errors if len(rest) == len(causes) else []
                self._causes |= {drv: Cause(None, errors) for drv in rest}
                return
            left = rest

    def _nix_build(self, plan: JobLimits, drvs: Iterable[str], watch: Watch) -> None:
        keep_going = ["--keep-going"] if self._options.keep_going else []
        arguments = ["build", "--no-link", "--log-format", "internal-json", *keep_going]
        arguments += ["--cores", str(plan.cores), "--max-jobs", str(plan.max_jobs)]
        arguments += [f"{drv}^out" for drv in drvs]
        make_display = self._show or (lambda view: display.Lines(view, self._say))
        with make_display(self._view) as shown:
            watch.say = shown.say

            def tick() -> None:
                self._collect()
                shown.tick()

            process.stream(self._nix.command(*arguments), lambda line: self._take(line, watch), tick)

    def _take(self, line: str, watch: Watch) -> None:
        """Take in one line of Nix's log; what it shows to be whole is finished at once."""
        event = parse(line)
        subject = watch.take(event) if event else None
        if isinstance(subject, Build) and subject.ended is not None and subject.drv in self._pending:
            self._settle([self._pending[subject.drv]])
        elif isinstance(subject, Copy) and subject.ended:
            self._settle([item for item in self._pending.values() if item.out == subject.path])

    def _plan_again(self, plan: JobLimits) -> JobLimits:
        """The plan of a further attempt: half the compile jobs where memory ran out."""
        names = ", ".join(_names(self._pending.values()).values())
        self._say(f"again (attempt {self._attempt} of {self._options.retries + 1}): {names}")
        errors = [self._error(derivation, plan) for derivation in self._pending.values()]
        if plan.cores > 1 and any(out_of_memory(error) for error in errors):
            plan = replace(plan, cores=plan.cores // 2, given=("halved because memory ran out",))
            self._say(plan.sentence())
        return plan

    def _refuse_unbuildable(self) -> None:
        """End what no machine can build and no cache has; Nix would give up on all because of it."""
        if not self._pending:
            return
        self._configured = self._nix.configuration()
        if self._nix.store or not self._configured.settings:
            return
        for derivation in list(self._pending.values()):
            variant = derivation.request.variant
            if self._configured.builds(variant.system, derivation.features):
                continue
            fetch = ("build", "--no-link", "--max-jobs", "0", derivation.out)
            if self._nix.run(*fetch, remote=False).status == 0:
                self._settle([derivation], "fetched")
            else:
                del self._pending[derivation.drv]
                error = unbuildable(variant.short, variant.system, derivation.features)
                self._end(outcome_of(derivation.request, Status.FAILED, error=error))

    # ── finishing ──

    def _settle(self, candidates: Iterable[Derivation], how: str = "") -> None:
        """Send the candidates whose output is whole on to be finished; they are no longer pending."""
        derivations = list(candidates)
        valid = self._nix.valid([item.out for item in derivations]) if derivations else frozenset()
        for derivation in derivations:
            if derivation.out in valid:
                del self._pending[derivation.drv]
                self._finishing[derivation] = self._pool.submit(self._finish, derivation, how)

    def _finish(self, derivation: Derivation, how: str) -> Outcome:
        build, log = None, None
        if self._watch:
            build = self._watch.tracker.builds.get(derivation.drv)
            log = self._watch.logs.paths.get(derivation.drv)
        outcome = outcome_of(
            derivation.request,
            Status.BUILT,
            how=how or ("built" if build else "fetched"),
            seconds=build.seconds(time.monotonic()) if build else 0.0,
            attempts=self._attempt,
            log=log,
        )
        return self._finisher.finish(derivation.request, derivation.out, outcome, self._say)

    def _collect(self, wait: bool = False) -> None:
        """Take the outcomes of what was finished since; with `wait` of all."""
        for derivation, future in list(self._finishing.items()):
            if wait or future.done():
                outcome = future.result()
                del self._finishing[derivation]
                self._end(outcome)

    # ── outcomes ──

    def _end(self, outcome: Outcome) -> None:
        self._outcomes[outcome.variant] = outcome
        self._done(outcome)

    def _failed(self, derivation: Derivation, plan: JobLimits, logs: BuildLogs) -> Outcome:
        cause = self._causes.get(derivation.drv, Cause())
        if not cause and any(self._causes.values()) and not self._options.keep_going:
            return skipped(derivation.request)
        build = cause.build
        return outcome_of(
            derivation.request,
            Status.FAILED,
            error=self._error(derivation, plan),
            seconds=build.seconds(build.started) if build else 0.0,
            attempts=self._attempt,
            phase=build.phase if build else "",
            tail=tuple(build.tail) if build else (),
            log=logs.paths.get(build.drv) if build else None,
        )

    def _error(self, derivation: Derivation, plan: JobLimits) -> Error:
        cause = self._causes.get(derivation.drv, Cause())
        own = cause.build is None or cause.build.drv == derivation.drv
        return failure(derivation.request.variant.short, cause.build, cause.errors, own, plan.cores)

    def _stop(self) -> None:
        """End an interrupted batch: what is finished stays, the rest is reported as interrupted."""
        self._collect()
        self._stopped.set()
        process.end_captured()  # an upload may take an hour
        self._pool.shutdown(cancel_futures=True)
        for derivation, future in list(self._finishing.items()):
            if not future.cancelled() and future.result().ok:
                self._end(future.result())
            else:
                self._pending[derivation.drv] = derivation
        if self._watch:
            self._say(self._watch.left_behind())
        for derivation in self._pending.values():
            error = Error("interrupted", hint="run the same command again: what is whole is not built twice")
            self._end(outcome_of(derivation.request, Status.INTERRUPTED, error=error))

    def _view(self) -> display.View:
        # A terminal's table is drawn by a thread of its own: nothing is walked that may change meanwhile.
        now, watch = time.monotonic(), self._watch
        ended = list(self._outcomes.values())
        rows = [display.Row(item.short, item.status.value, seconds=item.seconds) for item in ended]
        rows += [display.Row(item.request.variant.short, "auditing") for item in list(self._finishing)]
        if watch:
            pending = list(self._pending.values())
            rows += [watch.row(item.drv, item.out, now) for item in pending if item.drv in watch.names]
        return display.View(rows, watch.beside() if watch else "")


def _names(derivations: Iterable[Derivation]) -> dict[str, str]:
    """The variants' short names by derivation."""
    return {derivation.drv: derivation.request.variant.short for derivation in derivations}
