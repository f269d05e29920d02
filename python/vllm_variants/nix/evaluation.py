"""Evaluate variants to derivations: each in a process of its own, as many at once as memory allows.

One variant's evaluation imports a nixpkgs of its own, 1 to 2 GB with CUDA, and shares next to nothing
with another's. So separate processes cost no more, give their memory back, and one bad variant does
not stop the rest. `nix-eval-jobs`, where it is on PATH, does the same with its own workers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.errors import Error
from vllm_variants.machine import memory
from vllm_variants.model.requests import Request
from vllm_variants.nix.command import Nix, first_error, not_understood
from vllm_variants.system import process
from vllm_variants.system.concurrent import Ended, run_all

PER_EVALUATION = 2_500_000_000  # bytes, for a nixpkgs with CUDA

_FACTS = """drv: {
  inherit (drv) drvPath name;
  out = drv.outPath;
  features = drv.requiredSystemFeatures or [ ];
}"""


@dataclass(frozen=True)
class Derivation:
    """What a variant evaluates to: its derivation, its first output, and what building it needs."""

    request: Request
    drv: str
    out: str
    name: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A variant that does not evaluate, and why."""

    request: Request
    error: Error


def evaluate(nix: Nix, requests: Sequence[Request], workers: int | None = None) -> list[Derivation | Refusal]:
    """Evaluate every request, in the order given; a bad one becomes a `Refusal`."""
    count = workers or concurrent(memory.available(), memory.processors())
    if len(requests) > 1 and (jobs := _eval_jobs()):
        return _with_eval_jobs(jobs, nix, requests, count)
    ended = run_all([_command(nix, request) for request in requests], count)
    return [_evaluated(request, end) for request, end in zip(requests, ended, strict=True)]


def concurrent(available: int, processors: int) -> int:
    """How many evaluations fit at once."""
    return max(1, min(processors, available // PER_EVALUATION))


def attribute(request: Request) -> str:
    """Where the flake has a variant: `legacyPackages.x86_64-linux.releases."0.13.0".sm90`."""
    return f"{parent(request)}.{request.variant.short}"


def parent(request: Request) -> str:
    """The set of a release's variants in the flake: `legacyPackages.x86_64-linux.releases."0.13.0"`."""
    return f'legacyPackages.{request.variant.system}.releases."{request.release.name}"'


def _command(nix: Nix, request: Request) -> list[str]:
    installable = f"{nix.flake}#{attribute(request)}"
    words = ["eval", "--json", installable, "--apply", _FACTS, *nix.flake_options()]
    return nix.command(*words, remote=False)


def _evaluated(request: Request, ended: Ended) -> Derivation | Refusal:
    if ended.status:
        return Refusal(request, refusal(request, first_error(ended.err)))
    try:
        facts = json.loads(ended.out)
        features = tuple(facts["features"])
        return Derivation(request, facts["drvPath"], facts["out"], facts["name"], features)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Refusal(request, not_understood("nix", ended.out))


def refusal(request: Request, reason: str) -> Error:
    """Why a variant does not evaluate, as an `Error`."""
    return Error(
        f"{request.variant.short} does not evaluate: {reason}",
        hint=f"see all of it: nix eval --show-trace '.#{attribute(request)}.drvPath'",
    )


def _eval_jobs() -> str | None:
    """nix-eval-jobs, if it is here and can be told which attributes to look at (`--select`)."""
    program = shutil.which("nix-eval-jobs")
    if not program:
        return None
    told = process.ask([program, "--help"])
    return program if "--select" in told.stdout + told.stderr else None


def _with_eval_jobs(
    program: str, nix: Nix, requests: Sequence[Request], workers: int
) -> list[Derivation | Refusal]:
    found: dict[Request, Derivation | Refusal] = {}
    for where in dict.fromkeys(parent(request) for request in requests):
        group = [request for request in requests if parent(request) == where]
        found |= _jobs_of(program, nix, where, group, workers)
    missing = "nix-eval-jobs said nothing about it"
    return [found.get(request) or Refusal(request, refusal(request, missing)) for request in requests]


def _jobs_of(
    program: str, nix: Nix, where: str, group: Sequence[Request], workers: int
) -> dict[Request, Derivation | Refusal]:
    by_name = {request.variant.short: request for request in group}
    wanted = " ".join(by_name)
    settings = [word for name, value in nix.options for word in ("--option", name, value)]
    command = [program, "--flake", f"{nix.flake}#{where}", "--select", f"set: {{ inherit (set) {wanted}; }}"]
    command += ["--workers", str(workers), "--max-memory-size", str(PER_EVALUATION // 1_000_000)]
    command += ["--option", "experimental-features", "nix-command flakes", *nix.override_options(), *settings]
    (told,) = run_all([command], 1)
    found: dict[Request, Derivation | Refusal] = {}
    for line in told.out.splitlines():
        try:
            job = json.loads(line)
            request = by_name.get(job["attr"])
            if request is not None:
                found[request] = _job(request, job)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise not_understood("nix-eval-jobs", line) from error
    if told.status and not found:
        reason = first_error(told.err)
        return {request: Refusal(request, refusal(request, reason)) for request in group}
    return found


def _job(request: Request, job: dict[str, Any]) -> Derivation | Refusal:
    if job.get("error"):
        return Refusal(request, refusal(request, first_error(job["error"])))
    features = tuple(job.get("requiredSystemFeatures", ()))
    return Derivation(request, job["drvPath"], job["outputs"]["out"], job["name"], features)


def untracked(flake: str) -> list[str]:
    """Files of a git checkout that Nix would read and git does not track, so that Nix misses them."""
    folder = Path(flake)
    if not (folder / ".git").exists() or not shutil.which("git"):
        return []
    command = ["git", "-C", str(folder), "ls-files", "--others", "--exclude-standard", "--"]
    told = process.ask([*command, "nix", "pkgs", ".flox", "variants.toml", "flake.nix", "flake.lock"])
    return told.stdout.split("\n")[:-1] if told.returncode == 0 else []
