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
from vllm_variants.builders.source.finishing import Finisher
from vllm_variants.builders.source.options import Options
from vllm_variants.errors import Error, MissingError, UsageError
from vllm_variants.machine import memory
from vllm_variants.model.requests import Request
from vllm_variants.nix import evaluation as nix_eval
from vllm_variants.nix.command import Nix, first_error, not_understood
from vllm_variants.nix.events import plain, without_name
from vllm_variants.nix.failures import failure
from vllm_variants.nix.progress import TAIL, Build
from vllm_variants.system import process
from vllm_variants.system.progress import Say

_Results = dict[str, dict[str, dict[str, Any]]]  # attribute → EVAL or BUILD → what the report says of it


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
        cores, max_jobs = self.options.cores, self.options.max_jobs
        plan = memory.limits_here(len(requests), cores=cores, max_jobs=max_jobs)
        say(plan.sentence())
        outcomes = {}
        for parent in dict.fromkeys(nix_eval.parent(request) for request in requests):
            group = [request for request in requests if nix_eval.parent(request) == parent]
            report = self._run(parent, group, plan)
            for request in group:
                outcome = self._outcome(request, report.get(request.variant.short, {}), plan, say)
                outcomes[request.name] = outcome
                done(outcome)
        return [outcomes[request.name] for request in requests]

    def _run(self, parent: str, group: Sequence[Request], plan: memory.JobLimits) -> _Results:
        wanted = " ".join(request.variant.short for request in group)
        with tempfile.TemporaryDirectory(prefix="vllm-variants-") as folder:
            report = Path(folder, "results.json")
            command = [self.program, "--flake", f"{self.nix.flake}#{parent}", "--no-nom"]
            command += ["--select", f"set: {{ inherit (set) {wanted}; }}"]
            command += ["--systems", group[0].variant.system]
            command += _jobs(plan, len(group))
            command += ["--option", "cores", str(plan.cores), "--retries", str(self.options.retries)]
            workers = nix_eval.concurrent(plan.available, plan.processors)
            command += ["--eval-workers", str(workers)]
            command += ["--eval-max-memory-size", str(nix_eval.PER_EVALUATION // 1_000_000)]
            command += ["--result-file", str(report), "--result-format", "json"]
            command += [] if self.options.keep_going else ["--fail-fast"]
            command += self.nix.override_options()
            command += [word for pair in self.nix.options for word in ("--option", *pair)]
            command += ["--option", "builders", self.nix.builders] if self.nix.builders is not None else []
            command += ["--store", self.nix.store] if self.nix.store else []
            talk = process.run(command)
            if not report.exists():
                raise Error(f"nix-fast-build ended without a report: {first_error(talk.text)}")
            try:
                return _read(report)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                text = report.read_text(encoding="utf-8", errors="replace")
                raise not_understood("nix-fast-build", text) from error

    def _outcome(
        self, request: Request, told: dict[str, dict[str, Any]], plan: memory.JobLimits, say: Say
    ) -> Outcome:
        evaluated, built = told.get("EVAL", {}), told.get("BUILD")
        if built is None or not evaluated.get("success", True):
            why = first_error(str(evaluated.get("error") or "nix-fast-build said nothing about it"))
            return outcome_of(request, Status.FAILED, error=nix_eval.refusal(request, why))
        seconds = float(built.get("duration") or 0)
        if not built["success"]:
            build = Build(str(built.get("drvPath", "")))
            log = plain(str(built.get("log_output") or built.get("error") or ""))
            build.tail.extend(without_name(line) for line in log.splitlines())
            error = failure(request.variant.short, build, [], True, plan.cores)
            return outcome_of(
                request, Status.FAILED, error=error, seconds=seconds, tail=tuple(build.tail)[-TAIL:]
            )
        finisher = Finisher(self.nix, self.options.cache)
        out = str((built.get("outputs") or evaluated.get("outputs") or {}).get("out", ""))
        return finisher.conclude(
            request, out, outcome_of(request, Status.BUILT, how="built", seconds=seconds), say
        )


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
    found: _Results = {}
    for row in json.loads(report.read_text(encoding="utf-8"))["results"]:
        found.setdefault(str(row["attr"]), {})[str(row["type"])] = row
    return found
