"""Audit: which images are in every shared library, and whether each container runs on a device.

No GPU is needed: the answer is in the files, and `capability.fit` is the driver's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vllm_variants.audit.contents import Expectations
from vllm_variants.audit.find import closure, sources
from vllm_variants.audit.library import LibraryAudit, audit_library
from vllm_variants.audit.report import AuditFinding, AuditReport, Verdict, judge
from vllm_variants.model.capability import Capability

__all__ = [
    "AuditFinding",
    "AuditReport",
    "Expectations",
    "LibraryAudit",
    "Verdict",
    "audit_tree",
    "closure",
    "collect",
    "judge",
]


def audit_tree(
    root: Path, capability: Capability | None, expectations: Expectations | None = None
) -> AuditReport:
    """Audit every library below `root` for a device; with `expectations`, also what should be there."""
    return judge((str(root),), collect([root], capability), capability, expectations)


def collect(
    paths: Sequence[Path],
    capability: Capability | None = None,
    progress: Callable[[str], None] = lambda path: None,
) -> tuple[LibraryAudit, ...]:
    """The libraries with device code in files, wheels and directories; `progress` is told each path.

    Paths are counted from a directory on; with several of them, from its name on. What cannot be
    read in a directory or a wheel is one of them, with its `problem`.
    """
    libraries: list[LibraryAudit] = []
    for path in paths:
        above = f"{path.resolve().name}/" if len(paths) > 1 and path.is_dir() else ""
        libraries += _collected(path, above, capability, progress)
    return tuple(libraries)


def _collected(
    path: Path, above: str, capability: Capability | None, progress: Callable[[str], None]
) -> list[LibraryAudit]:
    libraries: list[LibraryAudit] = []

    def unreadable(name: str, why: str) -> None:
        libraries.append(LibraryAudit(above + name, 0, problem=f"cannot be read: {why}"))

    for name, source in sources(path, unreadable):
        progress(name)
        library = audit_library(source, above + name, capability)
        if library and library.has_device_code:
            libraries.append(library)
    return libraries
