"""Audit a built output with all it needs at run time, once: a store path never changes.

A report that passed is kept under the output's name; the output itself is read-only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from vllm_variants import __version__, data, reporting, results
from vllm_variants.builders import Request, Say
from vllm_variants.builders.build_logs import state_folder
from vllm_variants.errors import AuditError, Error, InputError
from vllm_variants.results import Result


def identified(request: Request, out: Path) -> Result:
    """The result at `out`; `InputError` when it is not what was asked for."""
    result = results.read(out)
    told, release = result.manifest.variant, result.manifest.release
    if (told, release) != (request.name, request.release.name):
        raise InputError(
            f"{out} says it is {told} of release {release}, not {request.name} of {request.release.name}",
            mend="the flake and this vllm-variants are of different versions: use those of one checkout",
        )
    return result


def audited(request: Request, result: Result, closure: Callable[[], Iterable[Path]], say: Say) -> Path:
    """The path of the report on `closure()`, which the result is part of. Raises `AuditError`.

    A report is of one version of this tool and of the expectations: with others it is made again.
    """
    release, system = request.release.name, request.variant.system
    path = state_folder() / "audits" / f"{result.path.name}-{__version__}-{_digest(release)}.json"
    if path.exists():
        return path
    from vllm_variants import audit
    from vllm_variants.audit import expectations

    known = expectations.load(release, system)
    paths = sorted(closure())
    if result.path not in paths:
        raise Error(f"Nix does not know what {result.path} needs, so it cannot be audited")
    short, device = request.variant.short, request.variant.capability
    report = audit.judge((str(result.path),), audit.collect(paths, device), device, known)
    if not report.passed:
        raise AuditError(
            f"{short} is built, but not linked: {report.missing}",
            mend=f"vllm-variants audit {result.path} --closure shows every library",
        )
    say(f"{short}: audit: {report.verdict} for {device} in all {len(paths)} store paths")
    reporting.write(path, json.dumps(report.as_dict(), indent=1) + "\n")
    return path


def _digest(release: str) -> str:
    file = data.root() / "expectations" / f"{release}.toml"
    text = file.read_bytes() if file.is_file() else b""
    return hashlib.sha256(text).hexdigest()[:8]
