"""Why a variant of a batch is not there: who cannot build it, which build failed, what Nix said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_variants.builders.outcomes import Outcome, Status, outcome_of
from vllm_variants.builders.source.logs import BuildLogs
from vllm_variants.builders.source.watch import Watch
from vllm_variants.errors import Error, UnsupportedError
from vllm_variants.machine.memory import JobLimits
from vllm_variants.nix.command import Configuration
from vllm_variants.nix.evaluation import Derivation
from vllm_variants.nix.failures import failure
from vllm_variants.nix.progress import Build


@dataclass(frozen=True)
class Blame:
    """Why a variant is not built: the build that failed, or what Nix said; false when nothing is known."""

    build: Build | None = None
    errors: Sequence[str] = ()

    def __bool__(self) -> bool:
        return self.build is not None or bool(self.errors)


def error(derivation: Derivation, blame: Blame, plan: JobLimits) -> Error:
    """The failure as an `Error`."""
    own = blame.build is None or blame.build.drv == derivation.drv
    return failure(derivation.request.variant.short, blame.build, blame.errors, own, plan.cores)


def failed(derivation: Derivation, blame: Blame, plan: JobLimits, attempts: int, logs: BuildLogs) -> Outcome:
    """The failure as an outcome, with the last lines and the log of the build that failed."""
    build = blame.build
    return outcome_of(
        derivation.request,
        Status.FAILED,
        error=error(derivation, blame, plan),
        seconds=build.seconds(build.started) if build else 0.0,
        attempts=attempts,
        phase=build.phase if build else "",
        tail=tuple(build.tail) if build else (),
        log=logs.paths.get(build.drv) if build else None,
    )


def unbuildable(configured: Configuration, derivation: Derivation) -> Error | None:
    """Why no machine that Nix knows can build this, if none can."""
    short, system = derivation.request.variant.short, derivation.request.variant.system
    if configured.builds(system, derivation.features):
        return None
    need = f"{system} with {', '.join(derivation.features)}" if derivation.features else system
    return UnsupportedError(
        f"{short} needs a machine of {need}, and none is configured here",
        hint=f"name a builder: --builders 'ssh-ng://host {system} - 4 1 big-parallel', or hint nix.conf "
        "(system-features, extra-platforms): vllm-variants doctor",
    )


def what_stays(watch: Watch) -> str:
    """What an interrupted run leaves in the store, and what may still go on elsewhere."""
    ended = [build for build in watch.tracker.builds.values() if build.ended is not None]
    kept = len(ended) - len(watch.failed)
    text = f"stopped; {kept} finished build{'s' if kept != 1 else ''} of this run stay in the store"
    machines = sorted({build.machine for build in watch.tracker.running if build.machine})
    if machines:
        text += f"; what runs on {', '.join(machines)} ends when it notices, or goes on to its end there"
    return text
