"""What is being audited: which release and device a path speaks of, if it says so itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vllm_variants import results
from vllm_variants.audit import expectations
from vllm_variants.audit.expectations import Expectations
from vllm_variants.audit.library import LibraryAudit
from vllm_variants.capability import Capability
from vllm_variants.results import Manifest

_VLLM = re.compile(r"vllm-(\d+\.\d+\.\d+)")


def manifest(path: Path) -> Manifest | None:
    """The manifest of a result; None when `path` is none."""
    file = path / results.MANIFEST
    return Manifest.read(file) if path.is_dir() and file.is_file() else None


def device_of(paths: Sequence[Path]) -> Capability | None:
    """The device that the first result among `paths` was built for."""
    return next((found.capability for path in paths if (found := manifest(path))), None)


def expectations_for(
    paths: Sequence[Path], libraries: Sequence[LibraryAudit], release: str | None
) -> Expectations | None:
    """The expectations of the vLLM in `paths`, for the machine its libraries are for.

    Single libraries are never held to a release: what else it has is not there to be seen.
    """
    whole = [path for path in paths if path.is_dir() or path.suffix == ".whl"]
    release = release or next((version for path in whole for version in _releases(path)), None)
    machine = next((library.machine for library in libraries if "vllm/" in library.path), None)
    if not (whole and release and machine):
        return None
    return expectations.load(release, f"{machine}-linux")


def _releases(path: Path) -> Iterator[str]:
    if found := manifest(path):
        yield found.release
    names = [path.name] if path.suffix == ".whl" else [p.name for p in _dist_infos(path)]
    for name in names:
        if match := _VLLM.match(name):
            yield match[1]


def _dist_infos(path: Path) -> Iterator[Path]:
    for pattern in ("vllm-*.dist-info", "lib/python3*/site-packages/vllm-*.dist-info"):
        yield from sorted(path.glob(pattern))
