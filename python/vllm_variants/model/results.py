"""Results: what a build leaves, and the manifest that says what it is.

A result is a directory with `bin/python`, `bin/python3`, `bin/vllm` and
`share/vllm-variants/manifest.json`, whichever builder made it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vllm_variants.errors import InputError, MissingError, resource_error
from vllm_variants.model.capability import Capability

MANIFEST = Path("share", "vllm-variants", "manifest.json")
SCHEMA = 1
# What a path that leads nowhere ends in: it is not there, or a file or a loop is in its middle.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
# What a file ends in that is there and lost all the same.
_UNREADABLE = frozenset({errno.EACCES, errno.EIO})


class DamagedError(InputError):
    """A directory that is, or was, a result, but has lost its manifest or its interpreter."""


@dataclass(frozen=True)
class Manifest:
    """The facts of a result; `facts` is the whole JSON document, the properties its common parts."""

    facts: dict[str, Any]

    @property
    def variant(self) -> str:
        """The variant's full name."""
        return str(self.facts["variant"])

    @property
    def short(self) -> str:
        """The variant's short name."""
        return str(self.facts["short"])

    @property
    def capability(self) -> Capability:
        """The compute capability that the result was made for."""
        return Capability.parse(self.facts["capability"])

    @property
    def system(self) -> str:
        """`x86_64-linux` or `aarch64-linux`."""
        return str(self.facts["system"])

    @property
    def release(self) -> str:
        """The vLLM version."""
        return str(self.facts["release"])

    @property
    def builder(self) -> str:
        """`wheels`, `nix` or `flox`."""
        return str(self.facts["builder"])

    @property
    def created(self) -> str:
        """When it was built, UTC, `2026-11-23T15:00:00Z`; empty where a builder has no clock (Nix)."""
        return str(self.facts.get("created", ""))

    @property
    def audited(self) -> Mapping[str, Any]:
        """The sums of the audit that the build made; empty where that is kept elsewhere (Nix)."""
        steps = {step.get("name"): step for step in self.facts.get("steps") or ()}
        return dict(steps.get("audit", {}).get("totals") or {})

    @property
    def bytes(self) -> Mapping[str, int]:
        """Sizes in bytes: `installed`, and `result` after slimming; empty where nobody measured (Nix)."""
        return dict(self.facts.get("bytes", {}))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest file.

        Raises `DamagedError` when it is none, `InputError` when a later version of this program
        wrote it, and `ResourceError` when the disk does not give it.
        """
        try:
            manifest = cls(json.loads(path.read_text(encoding="utf-8")))
            schema = manifest.facts["schema"]
            later = type(schema) is int and schema > SCHEMA
            if not later:
                _require(schema == SCHEMA, f"its schema is {schema!r}")
                manifest._require_facts()
        except OSError as error:
            if error.errno in _UNREADABLE:
                raise DamagedError(
                    f"{path} cannot be read: {error.strerror}", hint="build the variant again"
                ) from error
            raise resource_error(error) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            missing = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise DamagedError(
                f"{path} is not a manifest of a result: {missing}", hint="build the variant again"
            ) from error
        if later:
            raise InputError(
                f"{path} has schema {schema}, this program reads {SCHEMA}",
                hint="use the vllm-variants that built it",
            )
        return manifest

    def _require_facts(self) -> None:
        """Raise `ValueError` or `KeyError` for the first common fact that is not what it must be."""
        for name in ("variant", "short", "capability", "system", "release", "builder"):
            _require(isinstance(self.facts[name], str), f"its {name} is {self.facts[name]!r}")
        _ = self.capability
        _require(isinstance(self.facts.get("created", ""), str), "its created is no text")
        sizes = self.facts.get("bytes", {})
        whole = isinstance(sizes, dict) and all(type(size) is int for size in sizes.values())
        whole = whole and (not sizes or {"installed", "result"} <= sizes.keys())
        _require(whole, f"its bytes are {sizes!r}")
        steps = self.facts.get("steps") or []
        _require(isinstance(steps, list) and all(isinstance(s, dict) for s in steps), "its steps are no list")
        totals = [step.get("totals") or {} for step in steps]
        _require(all(isinstance(total, dict) for total in totals), "the totals of its audit are no table")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


@dataclass(frozen=True)
class Result:
    """A built variant: its directory, with links resolved, and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def python(self) -> Path:
        """The interpreter that runs this result's vLLM."""
        return self.path / "bin" / "python"


def read(path: Path, *, variant: str | None = None) -> Result:
    """The result at `path` (a directory or a link to one), that building `variant` would make.

    Raises `MissingError` when there is none, `DamagedError` when it is broken, `InputError` when the
    path cannot be followed or leads to a result of a later version.
    """
    try:
        path.stat()
        directory = path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        if isinstance(error, OSError) and error.errno not in _ABSENT:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        broken = " (a broken link)" if _is_link(path) else ""
        raise MissingError(
            f"there is no result at {path}{broken}",
            hint=f"build it: vllm-variants build {variant or 'VARIANT'}",
        ) from error
    if not _is_file(directory / MANIFEST):
        raise DamagedError(f"{path} is no result: it has no {MANIFEST}", hint="name a ./result-… link")
    return Result(directory, Manifest.read(directory / MANIFEST))


def require_python(result: Result) -> None:
    """Raise `DamagedError` when a result has no `bin/python` that can be executed."""
    if not (_is_file(result.python) and os.access(result.python, os.X_OK)):
        raise DamagedError(
            f"{result.path} has no bin/python that can be executed", hint="build the variant again"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        return False
