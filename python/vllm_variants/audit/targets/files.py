"""Libraries of one file: of the library or the wheel that it is."""

from __future__ import annotations

from pathlib import Path

from vllm_variants.audit import features
from vllm_variants.audit.find import sources
from vllm_variants.audit.summary import LibrarySummary, summarise
from vllm_variants.audit.targets.found import Progress


def read_file(path: Path, name: str, above: str, progress: Progress) -> list[LibrarySummary]:
    """The library that a file is, if it has device code, or those of the wheel that it is.

    `name` is its path in the tree that it was found in, empty for one that a person named; `above` goes
    before it. What cannot be read is a library with a `problem`; where a person named it, an error as of
    `sources`.
    """
    libraries: list[LibrarySummary] = []

    def unreadable(member: str, why: str) -> None:
        libraries.append(LibrarySummary(_joined(above, name, member), 0, problem=f"cannot be read: {why}"))

    for member, source in sources(path, unreadable, named=not name):
        where = _joined(above, name, member)
        progress(where)
        summary = summarise(source, where, features.by_kernels(where))
        if summary and summary.has_device_code:
            libraries.append(summary)
    return libraries


def _joined(above: str, name: str, member: str) -> str:
    if not name:
        return above + member
    base = name.rpartition("/")[2]
    return above + (name if member in ("", base) else f"{name}/{member}")
