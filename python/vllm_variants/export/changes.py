"""What a build changed of the wheels that it installed: which libraries it slimmed, which files it dropped.

Read from what the build left in the result: `slim.json` has every library, the manifest every file that
went or became a link.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_variants.export.packages import Owners, Package
from vllm_variants.export.sources import site_packages
from vllm_variants.model.results import DamagedError, Result

_OF_DEVICE_CODE = ("images", "native", "compress")
"""What slimming saves in device code; the rest is of the host's: symbols and debug sections."""


@dataclass(frozen=True)
class Change:
    """A file that is not as it was published: sizes in bytes, `after` 0 where it was dropped.

    `path` is relative to site-packages. `device`: whether its device code changed, so that another SM has
    another file.
    """

    path: str
    before: int
    after: int
    device: bool = False
    dropped: bool = False

    def as_dict(self) -> dict[str, object]:
        """The change as a wheel's own facts have it."""
        return {"path": self.path, "before": self.before, "after": self.after}


@dataclass(frozen=True)
class Changes:
    """What was done to one package; `rules` are those that its libraries were slimmed by."""

    files: tuple[Change, ...] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.files)

    @property
    def device(self) -> bool:
        """Whether the package holds other bytes for another SM."""
        return any(change.device for change in self.files)


def of_result(result: Result, packages: Sequence[Package]) -> dict[str, Changes]:
    """The changes of each package that has some, by its name. Raises `DamagedError` without slim.json."""
    steps = {step.get("name"): step for step in result.manifest.facts.get("steps") or ()}
    rules = dict(steps.get("slim", {}).get("rules") or {})
    changes = [*_slimmed(result, steps.get("slim", {})), *_dropped(steps.get("files", {}))]
    owners, found = Owners(packages), dict[str, list[Change]]()
    for change in sorted(changes, key=lambda change: change.path):
        for name in sorted(owners.of(change.path)):
            found.setdefault(name, []).append(change)
    return {name: Changes(tuple(files), rules) for name, files in found.items()}


def _slimmed(result: Result, step: Mapping[str, Any]) -> list[Change]:
    if step.get("status") != "ran":
        return []
    path = result.path / "share" / "vllm-variants" / "slim.json"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        site = os.path.relpath(site_packages(result), result.path)
        return [
            Change(os.path.relpath(file["path"], site), file["before"], file["after"], _is_device(file))
            for file in files
            if not file["kept"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{path} does not say what was slimmed: {error}", hint="build the variant again"
        ) from error


def _is_device(file: Mapping[str, Any]) -> bool:
    return any(file["saved"].get(name) for name in _OF_DEVICE_CODE)


def _dropped(step: Mapping[str, Any]) -> list[Change]:
    """The files that nothing opens. One that became a link holds in a wheel what it held: none is changed."""
    return [
        Change(file["path"], file["bytes"], 0, dropped=True)
        for file in step.get("files") or ()
        if not file.get("link")
    ]
