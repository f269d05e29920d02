"""Which driver libraries need on a device: for their CUDA, for their PTX, for how code is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vllm_variants.audit.judging import JudgedFeature, too_old
from vllm_variants.audit.library import LibraryAudit
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.model import toolkits

_CUDA_LIBRARY = re.compile(r"(?:^|/)libcublas(?:Lt)?\.so\.(\d+)")
"""cuBLAS has the major version of its CUDA in its name."""
Libraries = Iterable[LibraryAudit] | Iterable[LibrarySummary]


def cuda_majors(libraries: Libraries) -> set[int]:
    """The major versions of CUDA that libraries are of, as far as their names say."""
    return {int(match[1]) for library in libraries if (match := _CUDA_LIBRARY.search(library.path))}


def oldest_driver(libraries: Libraries, features: Iterable[JudgedFeature]) -> int | None:
    """The oldest driver branch (575) that runs all of it; None where nothing says."""
    needed = [toolkits.OLDEST_DRIVERS.get(major, 0) for major in cuda_majors(libraries)]
    needed += [feature.counts.driver or 0 for feature in features]
    return max(needed, default=0) or None


def cuda_obstacle(libraries: Libraries, driver: str | None) -> str:
    """Why a driver runs none of it, as a clause; empty: it does, or it is not known which there is."""
    for major in sorted(cuda_majors(libraries), reverse=True):
        if too_old(driver, oldest := toolkits.OLDEST_DRIVERS.get(major)):
            return f"CUDA {major} needs driver {oldest} or newer, and here is {driver}"
    return ""
