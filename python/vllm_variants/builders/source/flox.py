"""The `flox` builder: `flox build <variant>` in the checkout, with the other builders' reporting.

Flox evaluates `.flox/pkgs/<variant>.nix` (the flake's derivation, to the hash) with a Nix of its own
and leaves `result-<variant>` in the checkout. Its lines are read here, its result is audited.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants import data
from vllm_variants.builders import display
from vllm_variants.builders.outcomes import Done, Outcome, Status, one_after_another, outcome_of
from vllm_variants.builders.reports import duration
from vllm_variants.builders.source import closure_audit, nix_run
from vllm_variants.builders.source import logs as build_logs
from vllm_variants.builders.source.finishing import Finisher
from vllm_variants.errors import Error, MissingError, UsageError
from vllm_variants.machine import memory
from vllm_variants.machine.memory import JobLimits
from vllm_variants.model import matrix, results
from vllm_variants.model.requests import Request
from vllm_variants.nix.command import Nix
from vllm_variants.nix.events import Event, LogLine, Message, Phase, without_name
from vllm_variants.nix.failures import failure
from vllm_variants.nix.progress import Build, Tracker
from vllm_variants.system import links, process
from vllm_variants.system.progress import Say

EXPRESSIONS = Path(".flox", "pkgs")
"""Where a checkout has Flox's package expressions, one a variant of the default release."""
_PHASE = re.compile(r"Running phase: (\w+)")  # as stdenv announces it


@dataclass(frozen=True)
class FloxBuilder:
    """The `flox` builder over one checkout. `plan` goes to Flox's Nix as settings."""

    root: Path
    plan: JobLimits
    retries: int = 0
    logs: Path | None = None
    keep_going: bool = True
    show: Callable[[Callable[[], display.View]], display.Display] | None = None

    def build_all(self, requests: Sequence[Request], say: Say, done: Done) -> list[Outcome]:
        """Build one request after the other; `done` hears of each."""
        folder = build_logs.new_folder(self.logs)
        say(f"{self.plan.sentence()}\nfull logs: {folder}")
        return one_after_another(
            requests, lambda request: self._one(request, folder, say), done, keep_going=self.keep_going
        )

    def _one(self, request: Request, folder: Path, say: Say) -> Outcome:
        try:
            check(self.root, request)
        except Error as error:
            return outcome_of(request, Status.FAILED, error=error)
        for attempt in range(1, self.retries + 2):
            outcome = self._attempt(request, folder, attempt, say)
            if outcome.ok or outcome.path:  # built, but not what it should be: no second build mends that
                break
        return outcome

    def _attempt(self, request: Request, folder: Path, attempt: int, say: Say) -> Outcome:
        log = folder / f"{request.variant.short}.log"
        build = Build(request.name, started=time.monotonic())
        status = self._run(request, build, log, say)
        build.ended = time.monotonic()
        facts = {"seconds": build.seconds(build.ended), "attempts": attempt, "log": log, "phase": build.phase}
        if status:
            why = failure(request.variant.short, build, [], True, self.plan.cores)
            lines = "".join(f"\n  | {line}" for line in list(build.tail)[-12:])
            took = duration(build.seconds(build.ended))
            say(f"{request.variant.short} failed after {took}; last lines:{lines}\n  full log: {log}")
            return outcome_of(request, Status.FAILED, error=why, tail=tuple(build.tail), **facts)
        out = (self.root / f"result-{request.name}").resolve()
        try:
            audit = self._finish(request, out, say)
        except Error as error:
            return outcome_of(request, Status.FAILED, error=error, path=out, **facts)
        manifest = results.read(out).manifest.facts
        more = {"how": "built", "link": request.link, "path": out, "audit": audit, "manifest": manifest}
        return outcome_of(request, Status.BUILT, **facts, **more)

    def _run(self, request: Request, build: Build, log: Path, say: Say) -> int:
        tracker = Tracker()
        tracker.adopt(0, build)

        def view() -> display.View:
            now = time.monotonic()
            row = (request.variant.short, "building", build.phase, build.objects, "", build.seconds(now))
            return display.View([display.Row(*row)])

        make = self.show or (lambda view: display.Lines(view, say))
        with log.open("a", encoding="utf-8", buffering=1) as file, make(view) as shown:

            def take(event: Event) -> None:
                if isinstance(event, Message):
                    line = without_name(event.text)
                    file.write(event.text + "\n")
                    tracker.apply(LogLine(0, line))
                    if phase := _PHASE.search(line):
                        tracker.apply(Phase(0, phase[1]))

            command = ["flox", "build", request.name]
            return nix_run.run(
                command, take, shown.tick, folder=self.root, env=self._environment(), stdout=True
            )

    def _environment(self) -> dict[str, str]:
        settings = f"cores = {self.plan.cores}\nmax-jobs = {self.plan.max_jobs}"
        return {**os.environ, "NIX_CONFIG": "\n".join(filter(None, (os.environ.get("NIX_CONFIG"), settings)))}

    def _finish(self, request: Request, out: Path, say: Say) -> Path:
        program = shutil.which("nix")
        if program:
            return Finisher(Nix(program, "")).finish(request, str(out), say)[1]
        result = closure_audit.identified(request, out)
        say("without nix on PATH only the result itself is audited, not what it needs")
        report = closure_audit.audited(request, result, [result.path], say)
        link = request.link.absolute()
        if link != (self.root / link.name).absolute():  # Flox's own keeps the result; this one leads to it
            links.point(link, out)
        return report


def find(cores: int | None, retries: int, logs: Path | None, keep_going: bool = True) -> FloxBuilder:
    """The builder over the checkout this runs from; raises an `Error` without Flox or checkout."""
    if not shutil.which("flox"):
        raise MissingError(
            "there is no flox on PATH, and --via flox builds with it",
            hint="install it (https://flox.dev/get), or build the same with --via nix",
        )
    root = data.checkout()
    if root is None:
        raise UsageError(
            "vllm-variants was installed as a package, and Flox builds in a checkout",
            hint="clone the repository and run ./vllm-variants there",
        )
    plan = memory.limits_here(1, cores=cores)
    return FloxBuilder(root, plan, retries, logs, keep_going)


def check(root: Path, request: Request) -> None:
    """Refuse, with an `Error`, what Flox would refuse at length: it sees only what git tracks."""
    path = EXPRESSIONS / f"{request.name}.nix"
    if request.release != matrix.load().default:
        raise UsageError(
            f"Flox has expressions of the default release only, not of {request.release.name}",
            hint=f"vllm-variants build --via nix {request.variant.short} --release {request.release.name}",
        )
    if not (root / path).is_file():
        raise UsageError(f"there is no {path}", hint="vllm-variants docs")
    inside = _git(root, "rev-parse", "--is-inside-work-tree")
    if inside.returncode:
        raise UsageError(
            f"{root} is no git checkout, and Flox builds what git tracks", hint="git init && git add ."
        )
    if _git(root, "ls-files", "--error-unmatch", "--", str(path)).returncode:
        raise UsageError(f"git does not track {path}, so Flox does not see it", hint=f"git add {path}")


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(root), *arguments]
    try:
        return process.ask(command)
    except OSError as error:
        raise MissingError("there is no git, and Flox builds what git tracks", hint="install git") from error
