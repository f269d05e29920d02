"""Results: what a build leaves, and the manifest that says what it is.

A result is a directory with `bin/python`, `bin/python3`, `bin/vllm` and
`share/vllm-variants/manifest.json`, whichever builder made it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vllm_variants.capability import Capability
from vllm_variants.errors import InputError, MissingError

MANIFEST = Path("share", "vllm-variants", "manifest.json")
SCHEMA = 1


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

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest file; `InputError` when it is not one."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            manifest = cls(facts)
            known = facts["schema"] == SCHEMA
            _ = (manifest.variant, manifest.short, manifest.capability, manifest.system)
            _ = (manifest.release, manifest.builder)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not a manifest of a result: {error}", mend="build the variant again"
            ) from error
        if not known:
            raise InputError(
                f"{path} has schema {facts['schema']!r}, this program reads {SCHEMA}",
                mend="use the vllm-variants that built it",
            )
        return manifest


@dataclass(frozen=True)
class Result:
    """A built variant: its directory, with links resolved, and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def python(self) -> Path:
        """The interpreter that runs this result's vLLM."""
        return self.path / "bin" / "python"


def read(path: Path) -> Result:
    """The result at `path` (a directory or a link to one); `MissingError` when there is none."""
    if not path.exists():
        broken = " (a broken link)" if path.is_symlink() else ""
        raise MissingError(
            f"there is no result at {path}{broken}", mend="build it: vllm-variants build VARIANT"
        )
    directory = path.resolve()
    if not (directory / MANIFEST).is_file():
        raise InputError(f"{path} is no result: it has no {MANIFEST}", mend="name a ./result-… link")
    return Result(directory, Manifest.read(directory / MANIFEST))
