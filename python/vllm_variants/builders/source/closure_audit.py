"""Audit a built output with all it needs at run time, once: a store path never changes.

A report that passed is kept under the output's name and a digest of all that decides it: which paths
were audited, for which device, which libraries should be there, and the code that judged.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import vllm_variants
from vllm_variants import data
from vllm_variants.errors import AuditError, Error
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.system import folders, reporting
from vllm_variants.system.progress import Say


def audited(
    request: Request,
    result: Result,
    closure: Iterable[Path],
    say: Say,
    go_on: Callable[[str], None] = lambda library: None,
) -> Path:
    """The path of the report on `closure`, which the result is part of. Raises `AuditError`.

    `go_on` is called before each library, and may raise an `Error` to end this early.
    """
    paths = sorted(closure)
    if result.path not in paths:
        raise Error(f"Nix does not know what {result.path} needs, so it cannot be audited")
    path = folders.state() / "audits" / f"{result.path.name}-{_digest(request, paths)}.json"
    if _passed(path):
        return path
    from vllm_variants import audit
    from vllm_variants.audit import contents

    expected = contents.load(request.release.name, request.variant.system)
    short, device = request.variant.short, request.variant.capability
    report = audit.judge((str(result.path),), audit.collect(paths, device, go_on), device, expected)
    if not report.passed:
        raise AuditError(
            f"{short} is built, but not linked: {report.missing}",
            hint=f"vllm-variants audit {result.path} --closure shows every library",
        )
    say(f"{short}: audit: {report.verdict} for {device} in all {len(paths)} store paths")
    reporting.write(path, json.dumps(report.as_dict(), indent=1) + "\n")
    return path


def _passed(path: Path) -> bool:
    """Whether a report is there that is whole and good."""
    if not path.exists():
        return False
    from vllm_variants.audit import Verdict

    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        report = json.loads(path.read_text(encoding="utf-8"))
        return Verdict(report["verdict"]) is not Verdict.MISSING
    return False


def _digest(request: Request, paths: Sequence[Path]) -> str:
    """16 hex digits of all that decides a report, besides the bytes in the store."""
    file = data.root() / "expectations" / f"{request.release.name}.toml"
    contents = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
    device = f"{request.variant.system} {request.variant.capability}"
    code = code_digest(Path(vllm_variants.__file__).parent)
    parts = (code, device, request.release.name, contents, *map(str, paths))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@functools.cache
def code_digest(package: Path) -> str:
    """A digest of the sources that make a report: the audit, what reads device code, and the rules."""
    rules = (package / "model" / "capability.py", package / "model" / "toolkits.py", package / "versions.py")
    digest = hashlib.sha256()
    for path in sorted([*package.glob("audit/**/*.py"), *package.glob("fatbin/**/*.py"), *rules]):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(text)}\n".encode() + text)
    return digest.hexdigest()
