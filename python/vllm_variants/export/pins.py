"""What packages require of each other, held to the versions that are there.

A release may be locked against a pin: torch 2.9.1 asks for CUDA 12.8's libraries by `==`, and runs with
12.9's. In a wheelhouse such a pin would make every resolver refuse the set, so a wheel gets the version
that was tested with it, and its facts say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from vllm_variants.export.packages import Package, normalized
from vllm_variants.model.results import Manifest


@dataclass(frozen=True)
class Pin:
    """A requirement of the set's own that does not hold in it, and what stands in its place.

    `corrected` is None where nothing does: it asks for a package that the release goes without.
    """

    published: str
    corrected: str | None

    def as_dict(self) -> dict[str, str | None]:
        """The correction as a wheel's own facts have it."""
        return {"published": self.published, "corrected": self.corrected}


def corrections(packages: Sequence[Package], manifest: Manifest) -> dict[str, tuple[Pin, ...]]:
    """The requirements of each package that do not hold among `packages`; packages without one are not there.

    What is for another platform, another Python or an extra that nobody asks for stays as it is.
    """
    there = _Set({package.name: package for package in packages}, _environment(manifest))
    found = {package.name: tuple(_broken(package, there)) for package in packages}
    return {name: pins for name, pins in found.items() if pins}


@dataclass(frozen=True)
class _Set:
    """Packages by name, and the markers' variables where they are installed."""

    packages: Mapping[str, Package]
    environment: Mapping[str, str]

    def version(self, requirement: Requirement) -> str:
        """The version that is there of what is required; empty where it is not there."""
        package = self.packages.get(normalized(requirement.name))
        return str(package.version) if package else ""

    def has(self, requirement: Requirement) -> bool:
        """Whether a requirement holds, its extras aside."""
        version = self.version(requirement)
        return bool(version) and requirement.specifier.contains(version, prereleases=True)

    def extras(self, requirement: Requirement) -> set[str]:
        """The extras of a requirement whose own requirements hold."""
        package = self.packages[normalized(requirement.name)]
        return {
            extra
            for extra in requirement.extras
            if all(map(self.has, required(package, {**self.environment, "extra": extra})))
        }


def _broken(package: Package, there: _Set) -> Iterator[Pin]:
    for requirement in required(package, there.environment):
        if not there.version(requirement):
            yield Pin(_as_published(package, requirement), None)
            continue
        extras = there.extras(requirement)
        if there.has(requirement) and extras == requirement.extras:
            continue
        specifier = str(requirement.specifier)
        if not there.has(requirement):
            specifier = f"=={Version(there.version(requirement)).public}"
        marker = f"; {requirement.marker}" if requirement.marker else ""
        named = f"[{','.join(sorted(extras))}]" if extras else ""
        corrected = f"{requirement.name}{named}{specifier}{marker}"
        yield Pin(_as_published(package, requirement), corrected)


def required(package: Package, environment: Mapping[str, str]) -> Iterator[Requirement]:
    """What a package requires in an environment; what cannot be read as a requirement is left out."""
    for text in package.distribution.metadata.get_all("Requires-Dist") or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
            yield requirement


def _as_published(package: Package, requirement: Requirement) -> str:
    """A requirement in the words of the package's metadata."""
    texts = package.distribution.metadata.get_all("Requires-Dist") or ()
    return next(text for text in texts if _is(text, requirement))


def _is(text: str, requirement: Requirement) -> bool:
    try:
        return Requirement(text) == requirement
    except InvalidRequirement:
        return False


def requirements_of(package: Package, manifest: Manifest) -> list[str]:
    """The names of what a package requires on the result's platform, without its extras; sorted."""
    return sorted({normalized(found.name) for found in required(package, _environment(manifest))})


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
