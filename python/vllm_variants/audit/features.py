"""What device code is for: which feature each container belongs to, by its library and its kernels.

The patterns are data, `features.toml`, each with where it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm_variants.audit.kernels import kernels
from vllm_variants.audit.summary import FeatureReader
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.source import Source
from vllm_variants.model import toml_file

FILE = Path(__file__).with_name("features.toml")


@dataclass(frozen=True)
class Feature:
    """Something that people use, and where its code is.

    `libraries` are patterns of the ends of paths; any of `kernels` chooses containers in them, none
    takes what nothing else claims. `needed`: nothing works where nothing of it runs. `anyone`: its libraries
    stand for each other. `checks` are names of GPU checks that try it.
    """

    key: str
    name: str
    says: str
    libraries: tuple[str, ...]
    kernels: tuple[re.Pattern[str], ...] = ()
    needed: bool = False
    anyone: bool = False
    checks: tuple[str, ...] = ()

    def holds(self, path: str) -> bool:
        """Whether a library at `path` may have code of it."""
        return any(_ends_as(path, pattern) for pattern in self.libraries)


@lru_cache(maxsize=1)
def known() -> tuple[Feature, ...]:
    """The features of `features.toml`, in its order."""
    return tuple(_read(key, table) for key, table in toml_file.load(FILE).items())


def _read(key: str, table: dict[str, Any]) -> Feature:
    return Feature(
        key, table["name"], table["says"], tuple(table["libraries"]),
        tuple(map(re.compile, table.get("kernels", ()))),
        bool(table.get("needed")), bool(table.get("anyone")), tuple(table.get("checks", ())),
    )  # fmt: skip


def _ends_as(path: str, pattern: str) -> bool:
    depth = pattern.count("/") + 1
    return fnmatchcase("/".join(path.split("/")[-depth:]), pattern)


def of_library(path: str) -> Feature:
    """The feature of containers that no kernel's name decides: the library's, else its package's."""
    for feature in known():
        if not feature.kernels and feature.holds(path):
            return feature
    package = package_of(path)
    return Feature(f"package:{package}", package, "a package of its own", (), needed=True)


def package_of(path: str) -> str:
    """A library's package: the folder below site-packages, else the first one, else the file."""
    parts = path.replace("!", "/").split("/")
    for folder in ("site-packages", "dist-packages"):
        if folder in parts[:-1]:
            parts = parts[len(parts) - parts[::-1].index(folder) :]
    first = parts[0] if len(parts) > 1 else re.split(r"\.(?:so|abi3|cpython)", parts[0])[0]
    if first.endswith(".whl"):
        return first.split("-")[0]
    return first.removesuffix(".libs")


def by_kernels(path: str) -> FeatureReader | None:
    """What reads the features of a library's containers; None where no kernel's name decides any."""
    candidates = [feature for feature in known() if feature.kernels and feature.holds(path)]
    return _reader(candidates) if candidates else None


def _reader(candidates: Sequence[Feature]) -> FeatureReader:
    def read(source: Source, container: Container, stubs: frozenset[int]) -> tuple[str, ...]:
        names = "\n".join(sorted(kernels(source, container, stubs)))
        feature = next((f for f in candidates if any(p.search(names) for p in f.kernels)), None)
        return (feature.key,) if feature else ()

    return read


def named(keys: Iterable[str]) -> list[Feature]:
    """The features with these keys, in the order of the keys."""
    by_key = {feature.key: feature for feature in known()}
    return [by_key[key] for key in keys if key in by_key]
