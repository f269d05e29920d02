"""A changed package as a wheel again: from the files that the result has, with a RECORD that is true.

Its name says that it is not the published one: `torch-2.9.1+sm90` (PEP 440: local versions are for builds
that a project did not publish), or a variant label (`variant_wheels`). Its dist-info says of what it was
made, `vllm_variants.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_variants import __version__, documents
from vllm_variants.errors import Error
from vllm_variants.export import members
from vllm_variants.export.changes import Changes
from vllm_variants.export.members import Member
from vllm_variants.export.packages import Package
from vllm_variants.export.pins import Pin
from vllm_variants.export.published import PublishedWheel
from vllm_variants.model.results import DamagedError, Manifest

FACTS = "vllm_variants.json"
"""Our file in a wheel's dist-info."""


@dataclass(frozen=True)
class Repack:
    """What is known of a wheel before it is written.

    `local` is the local version that it gets (`sm90`; empty: the version stays), `label` its variant label
    (empty: it is no variant wheel). `more` are further files of its dist-info.
    """

    package: Package
    published: PublishedWheel
    manifest: Manifest
    changes: Changes
    pins: tuple[Pin, ...] = ()
    local: str = ""
    label: str = ""
    more: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The version that the wheel has: `2.9.1+sm90`, `2.9.1+cu129.sm90`."""
        return local_version(self.package.version, self.local)

    @property
    def stem(self) -> str:
        """The beginning of its name: `nvidia_nccl_cu12-2.27.5+sm90`."""
        return f"{self.package.info.name.removesuffix('.dist-info').rpartition('-')[0]}-{self.version}"

    @property
    def file(self) -> str:
        """Its file name."""
        label = f"-{self.label}" if self.label else ""
        return f"{self.stem}-{self.published.tag}{label}.whl"

    @property
    def record(self) -> str:
        """The name of its RECORD."""
        return f"{self.stem}.dist-info/RECORD"

    def members(self) -> list[Member]:
        """Its files but the RECORD. Raises `DamagedError` for what the result has lost."""
        info = f"{self.stem}.dist-info"
        new = {f"{info}/METADATA": self._metadata()}
        new[f"{info}/{FACTS}"] = text(self.facts()).encode()
        new |= {f"{info}/{name}": data for name, data in self.more.items()}
        kept = [m for m in members.of_package(self.package, self.stem) if m.name not in new]
        return [*kept, *(Member(name, data=data) for name, data in new.items())]

    def facts(self) -> dict[str, Any]:
        """What dist-info says of the wheel: a document `vllm-variants/wheel/1`."""
        manifest, changes = self.manifest, self.changes
        done = [
            {"path": change.path, "before": change.before, "after": None if change.dropped else change.after}
            for change in changes.files
        ]
        return {
            "schema": documents.WHEEL,
            "name": self.package.name,
            "version": self.version,
            "source": {"file": self.published.file, "sha256": self.published.sha256},
            "variant": manifest.variant,
            "sm": manifest.capability.sm,
            "capability": str(manifest.capability),
            "release": manifest.release,
            "tool": __version__,
            "plan": plan_digest(changes),
            "files": done,
            "requires": [pin.as_dict() for pin in self.pins],
        }

    def _metadata(self) -> bytes:
        head, separator, body = self.package.text("METADATA").partition("\n\n")
        head = _replaced(head, "Version", self.package.version, self.version, self.package)
        for pin in self.pins:
            head = _replaced(head, "Requires-Dist", pin.published, pin.corrected, self.package)
        return f"{head}{separator}{body}".encode()


def local_version(version: str, local: str) -> str:
    """A version with one more local part: `2.9.1+sm90`, `2.9.1+cu129.sm90` (PEP 440)."""
    return f"{version}{'.' if '+' in version else '+'}{local}" if local else version


def plan_digest(changes: Changes) -> str:
    """The sha256 of what was done to a package, and by which rules."""
    plan = {"files": [change.as_dict() for change in changes.files], "rules": changes.rules}
    return f"sha256:{hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()}"


def text(document: Mapping[str, object] | Sequence[object]) -> str:
    """A document as it lies in a wheel: the same facts give the same bytes."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _replaced(head: str, field_name: str, old: str, new: str | None, package: Package) -> str:
    """The head of METADATA with one field's value replaced; without the field where `new` is None."""
    line = re.compile(rf"^{field_name}:[ \t]*{re.escape(old)}[ \t]*(\n|\Z)", re.MULTILINE | re.IGNORECASE)
    changed, count = line.subn(lambda match: "" if new is None else f"{field_name}: {new}{match[1]}", head)
    if not count:
        problem: Error = DamagedError(
            f"{package.info / 'METADATA'} has no line `{field_name}: {old}`", hint="build the variant again"
        )
        raise problem
    return changed
