"""What packages require of each other, held to the versions that are there.

A release may be locked against a pin: torch 2.9.1 asks for CUDA 12.8's libraries by `==`, and runs with
12.9's. In a wheelhouse such a pin would make every resolver refuse the set, so a wheel gets the version
that was tested with it, and its facts say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from vllm_variants.export.packages import Package, normalized
from vllm_variants.model.results import Manifest


@dataclass(frozen=True)
class Pin:
    """A requirement of the set's own that does not hold in it, and what stands in its place."""

    published: str
    corrected: str

    def as_dict(self) -> dict[str, str]:
        """The correction as a wheel's own facts have it."""
        return {"published": self.published, "corrected": self.corrected}


def corrections(
    packages: Sequence[Package], versions: Mapping[str, str], manifest: Manifest
) -> dict[str, tuple[Pin, ...]]:
    """The pins of each package that `versions` (by name) do not satisfy; packages without one are not there.

    A requirement on a package that the set does not have, or that is for another platform, an extra or
    another Python, stays as it is.
    """
    environment = _environment(manifest)
    found = {package.name: tuple(_broken(package, versions, environment)) for package in packages}
    return {name: pins for name, pins in found.items() if pins}


def _broken(package: Package, versions: Mapping[str, str], environment: Mapping[str, str]) -> list[Pin]:
    pins = []
    for text in package.distribution.metadata.get_all("Requires-Dist") or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        version = versions.get(normalized(requirement.name))
        if version is None or not _holds_here(requirement.marker, environment):
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            pins.append(Pin(text, _corrected(requirement, version)))
    return pins


def _holds_here(marker: Marker | None, environment: Mapping[str, str]) -> bool:
    return marker is None or marker.evaluate(dict(environment))


def _corrected(requirement: Requirement, version: str) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return f"{requirement.name}{extras}=={Version(version).public}{marker}"


def requirements_of(package: Package, manifest: Manifest) -> list[str]:
    """The names of what a package requires on the result's platform, without its extras; sorted."""
    environment = _environment(manifest)
    names = set()
    for text in package.distribution.metadata.get_all("Requires-Dist") or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if _holds_here(requirement.marker, environment):
            names.add(normalized(requirement.name))
    return sorted(names)


def _environment(manifest: Manifest) -> dict[str, str]:
    """The markers' variables (PyPA's "Dependency specifiers") where the result runs."""
    full = str(manifest.facts["python"])
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": manifest.system.partition("-")[0],
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full,
        "python_version": ".".join(full.split(".")[:2]),
        "sys_platform": "linux",
        "extra": "",
    }
