"""Evaluate variants to derivations: each in a process of its own, as many at once as memory allows.

One variant's evaluation imports a nixpkgs of its own, 1 to 2 GB with CUDA, and shares next to nothing
with another's. So separate processes cost no more, give their memory back, and one bad variant does
not stop the rest. `nix-eval-jobs`, where it is on PATH, does the same with its own workers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.errors import Error
from vllm_variants.machine import memory
from vllm_variants.model.requests import Request
from vllm_variants.model.variants import Release, Variant
from vllm_variants.nix.command import Nix, first_error, not_understood
from vllm_variants.system import process
from vllm_variants.system.process import CompletedCommand

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
    """A variant that cannot be built, and why: it does not evaluate, or something is in its way."""

    request: Request
    error: Error


def evaluate(nix: Nix, requests: Sequence[Request], workers: int | None = None) -> list[Derivation | Refusal]:
    """Evaluate every request, in the order given, `workers` at once; a bad one becomes a `Refusal`."""
    count = workers or concurrent(memory.available(), memory.processors())
    if len(requests) > 1 and (program := _eval_jobs()):
        return _with_eval_jobs(program, nix, requests, count)
    completed = process.capture_all([_command(nix, request) for request in requests], count)
    return [_evaluated(*pair) for pair in zip(requests, completed, strict=True)]


def concurrent(available: int, processors: int) -> int:
    """How many evaluations fit at once into `available` bytes of memory."""
    return max(1, min(processors, available // PER_EVALUATION))


def attribute(release: Release, variant: Variant) -> str:
    """Where the flake has a variant: `legacyPackages.x86_64-linux.releases."0.13.0".sm90`."""
    return f"{parent(release, variant)}.{variant.short}"


def parent(release: Release, variant: Variant) -> str:
    """The set in the flake that has a variant and the others of its release and system."""
    return f'legacyPackages.{variant.system}.releases."{release.name}"'


def error(release: Release, variant: Variant, reason: str) -> Error:
    """The `Error` for a variant that does not evaluate."""
    return Error(
        f"{variant.short} does not evaluate: {reason}",
        hint=f"see all of it: nix eval --show-trace '.#{attribute(release, variant)}.drvPath'",
    )


def _refusal(request: Request, reason: str) -> Refusal:
    return Refusal(request, error(request.release, request.variant, reason))


def _command(nix: Nix, request: Request) -> list[str]:
    installable = f"{nix.flake}#{attribute(request.release, request.variant)}"
    words = ["eval", "--json", installable, "--apply", _FACTS, *nix.flake_options()]
    return nix.command(*words, remote=False)


def _evaluated(request: Request, completed: CompletedCommand) -> Derivation | Refusal:
    if completed.status:
        return _refusal(request, first_error(completed.stderr))
    try:
        facts = json.loads(completed.stdout)
        features = tuple(facts["features"])
        return Derivation(request, facts["drvPath"], facts["out"], facts["name"], features)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Refusal(request, not_understood("nix", completed.stdout))


def _eval_jobs() -> str | None:
    """nix-eval-jobs, if it is here and knows `--select`, which names the attributes to evaluate."""
    program = shutil.which("nix-eval-jobs")
    return program if program and "--select" in process.capture([program, "--help"]).output else None


def _with_eval_jobs(
    program: str, nix: Nix, requests: Sequence[Request], workers: int
) -> list[Derivation | Refusal]:
    evaluated: dict[Request, Derivation | Refusal] = {}
    for prefix in dict.fromkeys(parent(request.release, request.variant) for request in requests):
        group = [request for request in requests if parent(request.release, request.variant) == prefix]
        evaluated |= _run_eval_jobs(program, nix, prefix, group, workers)
    return [
        evaluated.get(request) or _refusal(request, "nix-eval-jobs printed nothing about it")
        for request in requests
    ]


def _run_eval_jobs(
    program: str, nix: Nix, prefix: str, group: Sequence[Request], workers: int
) -> dict[Request, Derivation | Refusal]:
    by_name = {request.variant.short: request for request in group}
    settings = [word for name, value in nix.options for word in ("--option", name, value)]
    command = [program, "--flake", f"{nix.flake}#{prefix}", "--select", selection(by_name)]
    command += ["--workers", str(workers), "--max-memory-size", str(PER_EVALUATION // 1_000_000)]
    command += ["--option", "experimental-features", "nix-command flakes", *nix.override_options(), *settings]
    completed = process.capture(command)
    evaluated: dict[Request, Derivation | Refusal] = {}
    for line in completed.stdout.splitlines():
        try:
            job = json.loads(line)
            request = by_name.get(job["attr"])
            if request is not None:
                evaluated[request] = _from_job(request, job)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as failure:
            raise not_understood("nix-eval-jobs", line) from failure
    if completed.status and not evaluated:
        return {request: _refusal(request, first_error(completed.stderr)) for request in group}
    return evaluated


def selection(names: Iterable[str]) -> str:
    """The function that takes these attributes of a set alone, for `--select`."""
    return f"set: {{ inherit (set) {' '.join(names)}; }}"


def _from_job(request: Request, job: dict[str, Any]) -> Derivation | Refusal:
    if job.get("error"):
        return _refusal(request, first_error(job["error"]))
    features = tuple(job.get("requiredSystemFeatures", ()))
    return Derivation(request, job["drvPath"], job["outputs"]["out"], job["name"], features)


def untracked(flake: str) -> list[str]:
    """Files of a git checkout that Nix would read if git tracked them."""
    folder = Path(flake)
    if not (folder / ".git").exists() or not shutil.which("git"):
        return []
    command = ["git", "-C", str(folder), "ls-files", "--others", "--exclude-standard", "--"]
    listed = process.capture([*command, "nix", "pkgs", ".flox", "variants.toml", "flake.nix", "flake.lock"])
    return listed.stdout.split("\n")[:-1] if listed.status == 0 else []
