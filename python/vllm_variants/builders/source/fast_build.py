"""The `nix` builder with nix-fast-build as its engine: building begins while evaluation goes on.

nix-fast-build evaluates (with nix-eval-jobs), builds and shows; its report is read here, and what it
built is audited, linked and pushed as by the other engine. It starts one Nix a derivation, so the
number of those is what the memory plan limits, and each Nix gets one job.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.builders.outcomes import Done, Outcome, Status, outcome_of
from vllm_variants.builders.source.finishing import Finisher, blocked_links
from vllm_variants.builders.source.options import Options
from vllm_variants.errors import Error, MissingError, UsageError
from vllm_variants.machine import memory
from vllm_variants.model.requests import Request
from vllm_variants.nix import evaluation
from vllm_variants.nix.command import Nix, first_error, not_understood
from vllm_variants.nix.events import without_name
from vllm_variants.nix.failures import failure
from vllm_variants.nix.progress import TAIL, Build
from vllm_variants.system import process
from vllm_variants.system.progress import Say
from vllm_variants.system.text import plain

_Results = dict[str, dict[str, dict[str, Any]]]  # attribute → EVAL or BUILD → its row in the report


@dataclass(frozen=True)
class FastBuilder:
    """nix-fast-build over one Nix."""

    nix: Nix
    options: Options
    program: str

    def build_all(
        self, requests: Sequence[Request], say: Say, done: Done = lambda outcome: None
    ) -> list[Outcome]:
        """Build every request; one outcome each, in their order, and to `done` as each is known."""
        plan = memory.limits_here(len(requests), cores=self.options.cores, max_jobs=self.options.max_jobs)
        say(plan.sentence())
        blocked = blocked_links(requests)
        outcomes: dict[str, Outcome] = {}

        def take(outcome: Outcome) -> None:
            outcomes[outcome.variant] = outcome
            done(outcome)

        for request, error in blocked.items():
            take(outcome_of(request, Status.FAILED, error=error))
        groups: dict[str, list[Request]] = {}
        for request in requests:
            if request not in blocked:
                groups.setdefault(evaluation.parent(request.release, request.variant), []).append(request)
        for parent, group in groups.items():
            report = self._run(parent, group, plan)
            for request in group:
                take(self._outcome(request, report.get(request.variant.short, {}), plan, say))
        return [outcomes[request.name] for request in requests]

    def _run(self, parent: str, group: Sequence[Request], plan: memory.JobLimits) -> _Results:
        """Build variants of one release and system; the report."""
        with tempfile.TemporaryDirectory(prefix="vllm-variants-") as folder:
            report = Path(folder, "results.json")
            completed = process.show(self._command(parent, group, plan, report))
            if not report.exists():
                raise Error(f"nix-fast-build ended without a report: {first_error(completed.stdout)}")
            try:
                return _read(report)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                text = report.read_text(encoding="utf-8", errors="replace")
                raise not_understood("nix-fast-build", text) from error

    def _command(
        self, parent: str, group: Sequence[Request], plan: memory.JobLimits, report: Path
    ) -> list[str]:
        names = [request.variant.short for request in group]
        workers = evaluation.concurrent(plan.available, plan.processors)
        command = [self.program, "--flake", f"{self.nix.flake}#{parent}", "--no-nom"]
        command += ["--select", evaluation.selection(names), "--systems", group[0].variant.system]
        command += _jobs(plan, len(group))
        command += ["--option", "cores", str(plan.cores), "--retries", str(self.options.retries)]
        command += ["--eval-workers", str(workers)]
        command += ["--eval-max-memory-size", str(evaluation.PER_EVALUATION // 1_000_000)]
        command += ["--result-file", str(report), "--result-format", "json"]
        command += [] if self.options.keep_going else ["--fail-fast"]
        command += self.nix.override_options()
        command += [word for pair in self.nix.options for word in ("--option", *pair)]
        command += ["--option", "builders", self.nix.builders] if self.nix.builders is not None else []
        command += ["--store", self.nix.store] if self.nix.store else []
        return command

    def _outcome(
        self, request: Request, rows: dict[str, dict[str, Any]], plan: memory.JobLimits, say: Say
    ) -> Outcome:
        evaluated, built = rows.get("EVAL", {}), rows.get("BUILD")
        if built is None or not evaluated.get("success", True):
            reason = first_error(str(evaluated.get("error") or "nix-fast-build reported nothing about it"))
            error = evaluation.error(request.release, request.variant, reason)
            return outcome_of(request, Status.FAILED, error=error)
        seconds = float(built.get("duration") or 0)
        if not built["success"]:
            build = Build(str(built.get("drvPath", "")))
            log = plain(str(built.get("log_output") or built.get("error") or ""))
            build.tail.extend(without_name(line) for line in log.splitlines())
            error = failure(request.variant.short, build, [], True, plan.cores)
            return outcome_of(
                request, Status.FAILED, error=error, seconds=seconds, tail=tuple(build.tail)[-TAIL:]
            )
        out = str((built.get("outputs") or evaluated.get("outputs") or {}).get("out", ""))
        outcome = outcome_of(request, Status.BUILT, how="built", seconds=seconds)
        return Finisher(self.nix, self.options.cache).finish(request, out, outcome, say)


def _jobs(plan: memory.JobLimits, builds: int) -> list[str]:
    """How many Nix processes it starts, and how many builds each may have on this machine.

    Where nothing is built here (`--max-jobs 0`) each waits for a remote machine, so all may wait at once:
    nix-fast-build itself would wait for ever for none of them.
    """
    here = min(1, plan.max_jobs)
    return ["--max-jobs", str(plan.max_jobs or builds), "--option", "max-jobs", str(here)]


def find(nix: Nix, options: Options) -> FastBuilder:
    """The engine, or an `Error`: it must be on PATH, and keeps no logs of its own."""
    program = shutil.which("nix-fast-build")
    if not program:
        raise MissingError(
            "there is no nix-fast-build on PATH",
            hint="nix shell nixpkgs#nix-fast-build, or leave out --engine",
        )
    if options.logs:
        raise UsageError(
            "--logs does not go with nix-fast-build", hint="nix log has the logs of what it builds"
        )
    return FastBuilder(nix, options, program)


def _read(report: Path) -> _Results:
    results: _Results = {}
    for row in json.loads(report.read_text(encoding="utf-8"))["results"]:
        results.setdefault(str(row["attr"]), {})[str(row["type"])] = row
    return results
