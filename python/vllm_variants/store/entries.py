"""Entries of the store: a result under a name, whole or damaged, and the links to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import Error, InputError, MissingError, ResourceError
from vllm_variants.model import results
from vllm_variants.model.results import DamagedError, Result
from vllm_variants.store.folders import variant_and_release


@dataclass(frozen=True)
class Entry:
    """What the store holds under one name: a result, or what is wrong with it; and the links to it.

    `bytes` is its size as installed, 0 where that is not known.
    """

    path: Path
    result: Result | None
    problem: Error | None
    links: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """The size that the manifest gives."""
        return self.result.manifest.bytes.get("result", 0) if self.result else 0

    @property
    def named(self) -> tuple[str, str]:
        """The variant's short name and the release, as the entry's name says."""
        return variant_and_release(self.path.name)

    def as_dict(self) -> dict[str, object]:
        """The entry as JSON; `problem` and `hint` where it is damaged."""
        problem = {"problem": self.problem.message, "hint": self.problem.hint} if self.problem else {}
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "links": [str(link) for link in self.links],
            "manifest": self.result.manifest.facts if self.result else None,
            **problem,
        }


def whole(path: Path) -> Result:
    """The result at `path`, with an interpreter; `DamagedError` when something of it is lost."""
    result = results.read(path)
    results.require_python(result)
    return result


def entry_at(path: Path, links: Sequence[Path]) -> Entry:
    """What is at `path`; a damaged entry's problem names the command that builds it again."""
    try:
        return Entry(path, whole(path), None, tuple(links))
    except (DamagedError, MissingError) as error:
        short, release = variant_and_release(path.name)
        command = f"vllm-variants build {short} --release {release}"
        problem: Error = DamagedError(error.message, hint=f"build it anew: {command}")
    except (InputError, ResourceError) as error:
        problem = error
    return Entry(path, None, problem, tuple(links))
