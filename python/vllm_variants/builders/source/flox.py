"""The `flox` builder: `flox build <variant>` in the checkout, with the other builders' reporting.

Flox evaluates `.flox/pkgs/<variant>.nix` (the flake's derivation, to the hash) with a Nix of its own
and leaves `result-<variant>` in the checkout. Its lines are read here, its result is audited.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants import data
from vllm_variants.builders import display
from vllm_variants.builders.outcomes import Done, Outcome, Status, one_after_another, outcome_of
from vllm_variants.builders.source import logs as build_logs
from vllm_variants.builders.source.finishing import Finisher
from vllm_variants.builders.source.options import Options, Show
from vllm_variants.builders.source.watch import failure_notice
from vllm_variants.errors import Error, MissingError, UsageError
from vllm_variants.machine import memory
from vllm_variants.machine.memory import JobLimits
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request
from vllm_variants.nix.command import Nix
from vllm_variants.nix.events import LogLine, Phase, without_name
from vllm_variants.nix.failures import failure
from vllm_variants.nix.progress import Build, Tracker
from vllm_variants.system import links, process
from vllm_variants.system.process import CompletedCommand
from vllm_variants.system.progress import Say
from vllm_variants.system.text import plain

EXPRESSIONS = Path(".flox", "pkgs")
"""Where a checkout has Flox's package expressions, one a variant of the default release."""
_PHASE = re.compile(r"Running phase: (\w+)")  # as stdenv announces it


@dataclass(frozen=True)
class FloxBuilder:
    """The `flox` builder over one checkout. `plan` goes to Flox's Nix as settings."""

    root: Path
    plan: JobLimits
    options: Options
    show: Show | None = None

    def build_all(self, requests: Sequence[Request], say: Say, done: Done) -> list[Outcome]:
        """Build one request after the other; one outcome each, and to `done` as each is known."""
        folder = build_logs.new_folder(self.options.logs)
        say(f"{self.plan.sentence()}\nfull logs: {folder}")

        def build(request: Request) -> Outcome:
            return self._build(request, folder, say)

        return one_after_another(requests, build, done, keep_going=self.options.keep_going)

    def _build(self, request: Request, folder: Path, say: Say) -> Outcome:
        try:
            check(self.root, request)
        except Error as error:
            return outcome_of(request, Status.FAILED, error=error)
        for attempt in range(1, self.options.retries + 2):
            outcome = self._attempt(request, folder, attempt, say)
            if outcome.ok or outcome.path:  # built, but not what it should be: so would be a second build
                break
        return outcome

    def _attempt(self, request: Request, folder: Path, attempt: int, say: Say) -> Outcome:
        short, log = request.variant.short, folder / f"{request.variant.short}.log"
        build = Build(request.name, started=time.monotonic())
        status = self._run(request, build, log, say)
        build.ended = time.monotonic()
        seconds = build.seconds(build.ended)
        facts = {"seconds": seconds, "attempts": attempt, "log": log, "phase": build.phase}
        if status:
            say(failure_notice(short, build, log))
            error = failure(short, build, [], True, self.plan.cores)
            return outcome_of(request, Status.FAILED, error=error, tail=tuple(build.tail), **facts)
        out = (self.root / f"result-{request.name}").resolve()
        outcome = outcome_of(request, Status.BUILT, how="built", path=out, **facts)
        program = shutil.which("nix")
        return Finisher(Nix(program, "") if program else None).finish(request, str(out), outcome, say)

    def _run(self, request: Request, build: Build, log: Path, say: Say) -> int:
        """Run `flox build`, with its lines in the log and what they say in `build`; its exit status."""
        tracker = Tracker()
        tracker.adopt(0, build)

        def view() -> display.View:
            seconds = build.seconds(time.monotonic())
            row = display.Row(request.variant.short, "building", build.phase, build.objects, seconds=seconds)
            return display.View([row])

        make_display = self.show or (lambda view: display.Lines(view, say))
        with log.open("a", encoding="utf-8", buffering=1) as file, make_display(view) as shown:

            def take(line: str) -> None:
                file.write(plain(line) + "\n")
                text = without_name(plain(line))
                tracker.apply(LogLine(0, text))
                if phase := _PHASE.search(text):
                    tracker.apply(Phase(0, phase[1]))

            return process.stream(
                ["flox", "build", request.name],
                take,
                shown.tick,
                folder=self.root,
                env=self._environment(),
                stdout=True,
            )

    def _environment(self) -> dict[str, str]:
        settings = f"cores = {self.plan.cores}\nmax-jobs = {self.plan.max_jobs}"
        return {**os.environ, "NIX_CONFIG": "\n".join(filter(None, (os.environ.get("NIX_CONFIG"), settings)))}


def find(options: Options) -> FloxBuilder:
    """The builder over the checkout that this runs from.

    Raises `MissingError` without Flox, `UsageError` without a checkout.
    """
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
    return FloxBuilder(root, memory.limits_here(1, cores=options.cores), options)


def check(root: Path, request: Request) -> None:
    """Refuse, with an `Error`, what cannot succeed: Flox sees only what git tracks, and takes hours."""
    path = EXPRESSIONS / f"{request.name}.nix"
    if request.release != matrix.load().default:
        raise UsageError(
            f"Flox has expressions of the default release only, not of {request.release.name}",
            hint=f"vllm-variants build --via nix {request.variant.short} --release {request.release.name}",
        )
    if not (root / path).is_file():
        raise UsageError(f"there is no {path}", hint="vllm-variants docs")
    if _git(root, "rev-parse", "--is-inside-work-tree").status:
        raise UsageError(
            f"{root} is not a git checkout, and Flox builds what git tracks", hint="git init && git add ."
        )
    if _git(root, "ls-files", "--error-unmatch", "--", str(path)).status:
        raise UsageError(f"git does not track {path}, so Flox does not see it", hint=f"git add {path}")
    links.require_free(request.link.absolute())


def _git(root: Path, *arguments: str) -> CompletedCommand:
    try:
        return process.capture(["git", "-C", root, *arguments])
    except OSError as error:
        raise MissingError("there is no git, and Flox builds what git tracks", hint="install git") from error
