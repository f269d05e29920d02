"""What a release's published vLLM libraries hold for each SM: data beside the release.

`expectations/<release>.toml` says, per system and library, how many containers the published wheel
has and how many of them run on each SM, by how they fit it. It is derived from the wheels by
`vllm-variants audit --derive` and committed. The audit holds results to it, and it decides which
variants a release has.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants import data
from vllm_variants.errors import InputError
from vllm_variants.model import toml_file
from vllm_variants.model.capability import Capability, Fit


@dataclass(frozen=True)
class ExpectedContainers:
    """Containers of one library, or of several, on one SM: how many of all, and of those that run by fit."""

    containers: int
    by_fit: Mapping[Fit, int]

    @property
    def usable(self) -> int:
        """Containers with anything that runs there."""
        return sum(self.by_fit.values())

    @property
    def machine_code(self) -> int:
        """Containers with machine code that runs there."""
        return self.usable - self.by_fit.get(Fit.JIT, 0)

    def __add__(self, other: ExpectedContainers) -> ExpectedContainers:
        by_fit = Counter(self.by_fit) + Counter(other.by_fit)
        return ExpectedContainers(self.containers + other.containers, by_fit)

    def as_dict(self) -> dict[str, int]:
        """How many containers there are, fit how, or have nothing that runs, as JSON."""
        fits = {fit.value: self.by_fit.get(fit, 0) for fit in Fit if fit}
        return {"containers": self.containers, **fits, "none": self.containers - self.usable}


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

    def on(self, device: Capability) -> ExpectedContainers | None:
        """All libraries together on `device`; None when nothing was derived for it."""
        rows = [row for library in self.libraries.values() if (row := library.by_sm.get(device.sm))]
        return sum(rows[1:], rows[0]) if rows else None


def load(release: str, system: str) -> Expectations | None:
    """The expectations of a release on a system (`x86_64-linux`); None when there are none."""
    path = data.root() / "expectations" / f"{release}.toml"
    return _load(path, release, system) if path.is_file() else None


@functools.cache
def _load(path: Path, release: str, system: str) -> Expectations | None:
    return read(toml_file.load(path), release, system, path)


def read(
    document: Mapping[str, Any], release: str, system: str, path: Path = Path("expectations")
) -> Expectations | None:
    """The expectations in the parsed file `document`; None when it has none for the system.

    Raises `InputError` for a table that is not of this form.
    """
    tables = document.get(system)
    if tables is None:
        return None
    try:
        libraries = {name: _library(table) for name, table in tables.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: the tables of {system} are not understood ({error})",
            hint=f"make it again: vllm-variants audit --derive WHEEL… > expectations/{release}.toml",
        ) from error
    return Expectations(release, system, libraries)


def _library(table: Mapping[str, Any]) -> ExpectedLibrary:
    containers = int(table["containers"])
    by_sm = {sm: _row(containers, sm, row) for sm, row in table.items() if sm.startswith("sm")}
    return ExpectedLibrary(containers, by_sm)


def _row(containers: int, sm: str, row: Mapping[str, Any]) -> ExpectedContainers:
    expected = ExpectedContainers(containers, {Fit(name): int(count) for name, count in row.items()})
    counts = expected.by_fit.values()
    if Fit.NONE in expected.by_fit or any(count < 0 for count in counts) or expected.usable > containers:
        raise ValueError(f"{sm} counts more than those of {containers} containers that run there")
    return expected
