"""Audit: which images are in every shared library, and whether each container runs on a device.

No GPU is needed: the answer is in the files, and `capability.fit` is the driver's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vllm_variants.audit.contents import Expectations
from vllm_variants.audit.find import closure
from vllm_variants.audit.library import LibraryAudit, judged
from vllm_variants.audit.report import AuditFinding, AuditReport, Verdict, judge
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.audit.targets.trees import read_tree
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
    "summaries",
]


def audit_tree(
    root: Path, capability: Capability | None, expectations: Expectations | None = None
) -> AuditReport:
    """Audit every library below `root` (a file, a wheel or a directory) for a device.

    Without a device there is no verdict; with `expectations` it is also judged for what should be there.
    Raises `MissingError` or `InputError` where `root` itself cannot be read.
    """
    return judge((str(root),), collect([root], capability), capability, expectations)


def collect(
    paths: Sequence[Path],
    capability: Capability | None = None,
    progress: Callable[[str], None] = lambda path: None,
) -> tuple[LibraryAudit, ...]:
    """The libraries with device code in files, wheels and directories.

    `progress` is called with the path of each library before it is read. A library's path starts below
    the directory that it was found in; where several paths are given, with that directory's name. What
    cannot be read in a directory or a wheel is a library with a `problem`. Errors as of `audit_tree`.
    """
    return tuple(judged(summary, capability) for summary in summaries(paths, progress))


def summaries(
    paths: Sequence[Path], progress: Callable[[str], None] = lambda path: None
) -> tuple[LibrarySummary, ...]:
    """The same, for no device in particular: they can be judged for any (`judged`)."""
    libraries: list[LibrarySummary] = []
    for path in paths:
        above = f"{path.resolve().name}/" if len(paths) > 1 and path.is_dir() else ""
        libraries += read_tree(path, progress, above)
    return tuple(libraries)
