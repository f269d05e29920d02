"""Audit: which images are in every shared library, and whether each container runs on a device.

No GPU is needed: the answer is in the files, and `capability.fit` is the driver's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vllm_variants.audit.expectations import Expectations
from vllm_variants.audit.find import closure, sources
from vllm_variants.audit.library import LibraryAudit, audit_library
from vllm_variants.audit.report import AuditReport, Finding, Verdict, judge
from vllm_variants.capability import Capability

__all__ = [
    "AuditReport",
    "Expectations",
    "Finding",
    "LibraryAudit",
    "Verdict",
    "audit_paths",
    "audit_tree",
    "closure",
]


def audit_tree(
    root: Path, capability: Capability | None, expectations: Expectations | None = None
) -> AuditReport:
    """Audit every library below `root` for a device; with `expectations`, also what should be there."""
    return audit_paths([root], capability, expectations)


def audit_paths(
    paths: Sequence[Path],
    capability: Capability | None = None,
    expectations: Expectations | None = None,
    progress: Callable[[str], None] = lambda path: None,
) -> AuditReport:
    """Audit files, wheels and directories together; `progress` is told each library's path."""
    libraries = []
    for path in paths:
        for name, source in sources(path):
            progress(name)
            library = audit_library(source, name, capability)
            if library and library.has_device_code:
                libraries.append(library)
    return judge(tuple(map(str, paths)), tuple(libraries), capability, expectations)
