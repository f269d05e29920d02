"""What a release's vLLM libraries should hold for each SM: data beside the release.

`expectations/<release>.toml` says, per system and library, how many containers the published wheel
has and how many of them have machine code, or only PTX, for each SM. It is derived from the wheels
by `vllm-variants audit --derive` and committed; the audit holds results to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_variants import data
from vllm_variants.audit.library import LibraryAudit
from vllm_variants.model import toml_file
from vllm_variants.model.capability import Capability, Fit


@dataclass(frozen=True)
class ExpectedContainers:
    """One library on one SM, in containers: with machine code, and with PTX only."""

    machine_code: int
    ptx_only: int

    @property
    def usable(self) -> int:
        """Containers with anything that runs there."""
        return self.machine_code + self.ptx_only


@dataclass(frozen=True)
class ExpectedLibrary:
    """One library of the published wheel: all its containers, and what of them each SM of the matrix runs."""

    containers: int
    by_sm: Mapping[str, ExpectedContainers]


@dataclass(frozen=True)
class Expectations:
    """One release on one system; libraries by their path in site-packages."""

    release: str
    system: str
    libraries: Mapping[str, ExpectedLibrary]

    def missing(self, library: LibraryAudit | None, name: str, device: Capability) -> str:
        """What is wrong with a library's code for `device`, in a few words; empty: nothing.

        A library with as many containers as the published wheel's must have as many with usable
        code. One compiled for this SM alone has other containers: some must be usable.
        """
        expected = self.libraries[name].by_sm.get(device.sm)
        if expected is None or not expected.usable:
            return ""
        if library is None:
            return "is not there"
        if library.problem:
            return "cannot be read"
        usable = library.runs + library.fits[Fit.JIT]
        if library.containers == self.libraries[name].containers:
            lost = expected.usable - usable
            if lost > 0:
                return f"{lost} of {expected.usable} containers have nothing for {device.sm}"
            if library.runs < expected.machine_code:
                return f"{expected.machine_code - library.runs} containers lost their machine code"
            return ""
        return "" if usable else f"nothing in it runs on {device.sm}"


def load(release: str, system: str) -> Expectations | None:
    """The expectations of a release on a system (`x86_64-linux`); None when there are none."""
    path = data.root() / "expectations" / f"{release}.toml"
    if not path.is_file():
        return None
    return read(toml_file.load(path), release, system)


def read(document: Mapping[str, Any], release: str, system: str) -> Expectations | None:
    """The expectations in the parsed file `document`; None when it has none for the system."""
    tables = document.get(system)
    if tables is None:
        return None
    libraries = {
        name: ExpectedLibrary(
            table["containers"],
            {sm: ExpectedContainers(*counts) for sm, counts in table.items() if sm.startswith("sm")},
        )
        for name, table in tables.items()
    }
    return Expectations(release, system, libraries)
