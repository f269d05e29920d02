"""One batch of the `nix` builder: what is still to be built, and what became of the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from vllm_variants.builders import display
from vllm_variants.builders.outcomes import Outcome, Status, outcome_of
from vllm_variants.builders.source import blame as nix_blame
from vllm_variants.builders.source import logs as build_logs
from vllm_variants.builders.source import nix_run
from vllm_variants.builders.source.blame import Blame
from vllm_variants.builders.source.finishing import Finisher
from vllm_variants.builders.source.logs import BuildLogs
from vllm_variants.builders.source.options import Options, Show
from vllm_variants.builders.source.watch import Watch
from vllm_variants.errors import Error, Interrupted
from vllm_variants.machine import memory
from vllm_variants.machine.memory import JobLimits
from vllm_variants.nix.command import Configuration, Nix
from vllm_variants.nix.evaluation import Derivation, Refusal
from vllm_variants.nix.events import Event
from vllm_variants.nix.failures import out_of_memory
from vllm_variants.nix.progress import Build, Copy
from vllm_variants.system import process
from vllm_variants.system.progress import Say

FINISHING = 2  # outputs audited, linked and pushed at once, beside the builds


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
        self._blame: dict[str, Blame] = {}
        self._attempt = 1
        self._watch: Watch | None = None
        self._configured = Configuration()

    def run(self, found: Sequence[Derivation | Refusal]) -> list[Outcome]:
        """Build and finish everything that evaluated; outcomes in the order of `found`."""
        for item in found:
            if isinstance(item, Refusal):
                self._end(outcome_of(item.request, Status.FAILED, error=item.error))
            else:
                self._pending[item.drv] = item
        self._pool = ThreadPoolExecutor(max_workers=FINISHING)
        try:
            self._settle(self._pending.values(), "already built")
            self._refuse_foreign()
            if self._pending:
                self._build()
            self._collect(wait=True)
        except Interrupted:
            self._stop()
            raise
        finally:
            self._pool.shutdown(cancel_futures=True)
        return [self._outcomes[item.request.name] for item in found]

    # ── building ──

    def _build(self) -> None:
        options = self._options
        plan = memory.limits_here(len(self._pending), cores=options.cores, max_jobs=options.max_jobs)
        self._say(plan.sentence())
        self._warn()
        with BuildLogs(build_logs.new_folder(self._options.logs), _names(self._pending.values())) as logs:
            self._say(f"full logs: {logs.folder}")
            for attempt in range(1, self._options.retries + 2):
                self._attempt = attempt
                if attempt > 1:
                    plan = self._again(plan)
                self._rounds(plan, logs)
                if not self._pending:
                    return
            for derivation in list(self._pending.values()):
                self._end(self._failed(derivation, plan, logs))

    def _warn(self) -> None:
        """Say what is known to go wrong, before hours are spent."""
        from vllm_variants.nix import findings as nix_findings

        for finding in nix_findings.before_build(self._nix, self._configured, len(self._pending)):
            if finding.hint:
                self._say(f"note: {finding.about}: {finding.text}\nhint: {finding.hint}")

    def _rounds(self, plan: JobLimits, logs: BuildLogs) -> None:
        """Build what is pending; go on with the rest where Nix gave up on all because of some.

        An error that belongs to no build (a missing feature) ends Nix, `--keep-going` or not.
        """
        left = dict(self._pending)
        while left:
            watch = self._watch = Watch(self._nix, _names(left.values()), logs, self._say)
            self._nix_build(plan, left, watch)
            self._settle([d for drv, d in left.items() if drv in self._pending])
            failed = {drv: Blame(watch.cause(drv), watch.errors(drv)) for drv in left if drv in self._pending}
            self._blame |= failed
            rest = {drv: left[drv] for drv, blame in failed.items() if not blame}
            if len(rest) in (0, len(left)) or not self._options.keep_going:
                told = watch.tracker.errors if len(rest) == len(failed) else []
                self._blame |= {drv: Blame(None, told) for drv in rest}
                return
            left = rest

    def _nix_build(self, plan: JobLimits, wanted: Iterable[str], watch: Watch) -> None:
        keep = ["--keep-going"] if self._options.keep_going else []
        arguments = ["build", "--no-link", "--log-format", "internal-json", *keep]
        arguments += ["--cores", str(plan.cores), "--max-jobs", str(plan.max_jobs)]
        arguments += [f"{drv}^out" for drv in wanted]
        make = self._show or (lambda view: display.Lines(view, self._say))
        with make(self._view) as shown:
            watch.say = shown.say

            def tick() -> None:
                self._collect()
                shown.tick()

            nix_run.run(self._nix.command(*arguments), self._take, tick)

    def _take(self, event: Event) -> None:
        assert self._watch is not None
        about = self._watch.take(event)
        if isinstance(about, Build) and about.ended is not None and about.drv in self._pending:
            self._settle([self._pending[about.drv]])
        elif isinstance(about, Copy) and about.ended:
            self._settle([d for d in self._pending.values() if d.out == about.path])

    def _again(self, plan: JobLimits) -> JobLimits:
        """The plan of a further attempt: half the compile jobs where memory ran out."""
        names = ", ".join(_names(self._pending.values()).values())
        self._say(f"again (attempt {self._attempt} of {self._options.retries + 1}): {names}")
        errors = [self._error(derivation, plan) for derivation in self._pending.values()]
        if plan.cores > 1 and any(out_of_memory(error) for error in errors):
            plan = replace(plan, cores=plan.cores // 2, given=("halved because memory ran out",))
            self._say(plan.sentence())
        return plan

    def _refuse_foreign(self) -> None:
        """End what no machine here can build and no cache has; Nix would give up on all because of it."""
        if not self._pending:
            return
        self._configured = self._nix.configuration()
        if self._nix.store or not self._configured.settings:
            return
        for derivation in list(self._pending.values()):
            error = nix_blame.unbuildable(self._configured, derivation)
            if error is None:
                continue
            told = self._nix.ask("build", "--no-link", "--max-jobs", "0", derivation.out, remote=False)
            if told.status == 0:
                self._settle([derivation], "fetched")
            else:
                del self._pending[derivation.drv]
                self._end(outcome_of(derivation.request, Status.FAILED, error=error))

    # ── finishing ──

    def _settle(self, candidates: Iterable[Derivation], how: str = "") -> None:
        """Send the variants whose output is whole on to be finished, and forget them here."""
        wanted = list(candidates)
        valid = self._nix.valid([d.out for d in wanted]) if wanted else frozenset()
        for derivation in wanted:
            if derivation.out in valid:
                del self._pending[derivation.drv]
                self._finishing[derivation] = self._pool.submit(self._finish, derivation, how)

    def _finish(self, derivation: Derivation, how: str) -> Outcome:
        request, build, log = derivation.request, None, None
        if self._watch:
            build = self._watch.tracker.builds.get(derivation.drv)
            log = self._watch.logs.paths.get(derivation.drv)
        how = how or ("built" if build else "fetched")
        outcome = outcome_of(
            request,
            Status.BUILT,
            how=how,
            seconds=build.seconds(time.monotonic()) if build else 0.0,
            attempts=self._attempt,
            log=log,
        )
        return self._finisher.conclude(request, derivation.out, outcome, self._say)

    def _collect(self, wait: bool = False) -> None:
        """Take the outcomes of what was finished since."""
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
        blame = self._blame.get(derivation.drv, Blame())
        if not blame and any(self._blame.values()) and not self._options.keep_going:
            error = Error("not tried: another variant failed first", hint="leave out --no-keep-going")
            return outcome_of(derivation.request, Status.SKIPPED, error=error)
        return nix_blame.failed(derivation, blame, plan, self._attempt, logs)

    def _error(self, derivation: Derivation, plan: JobLimits) -> Error:
        return nix_blame.error(derivation, self._blame.get(derivation.drv, Blame()), plan)

    def _stop(self) -> None:
        """After an interruption: what is whole stays, what is not is told as interrupted."""
        self._collect()
        self._stopped.set()
        process.end_asked()  # an upload may take an hour
        self._pool.shutdown(cancel_futures=True)
        for derivation, future in list(self._finishing.items()):
            if not future.cancelled() and future.result().ok:
                self._end(future.result())
            else:
                self._pending[derivation.drv] = derivation
        if self._watch:
            self._say(nix_blame.what_stays(self._watch))
        for derivation in self._pending.values():
            error = Error("interrupted", hint="run the same command again: what is whole is not built twice")
            self._end(outcome_of(derivation.request, Status.INTERRUPTED, error=error))

    def _view(self) -> display.View:
        # A terminal's table is drawn by a thread of its own: nothing is walked that may change meanwhile.
        now, watch = time.monotonic(), self._watch
        ended = list(self._outcomes.values())
        rows = [display.Row(o.short, o.status.value, seconds=o.seconds) for o in ended]
        rows += [display.Row(d.request.variant.short, "auditing") for d in list(self._finishing)]
        if watch:
            pending = list(self._pending.values())
            rows += [watch.row(d.drv, d.out, now) for d in pending if d.drv in watch.names]
        return display.View(rows, watch.beside() if watch else "")


def _names(derivations: Iterable[Derivation]) -> dict[str, str]:
    return {derivation.drv: derivation.request.variant.short for derivation in derivations}
