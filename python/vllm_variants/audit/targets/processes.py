"""Many files of a tree, read by as many processes as there are processors, where that is faster.

What a process reads comes back as the cache keeps it, so it is exactly what this one would have read.
Whatever keeps the others from answering (they cannot be started, one was killed), this one reads the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.audit import features
from vllm_variants.audit.find import is_library
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.audit.targets.files import read_file
from vllm_variants.audit.targets.found import Progress
from vllm_variants.errors import ResourceError
from vllm_variants.fatbin import workers
from vllm_variants.fatbin.serving import path_as_text
from vllm_variants.machine import memory

_READER = "vllm_variants.audit.targets.reader"
_MOST = 8
"""Processes: more would wait for the library that takes longest, which is a quarter of the work
in vLLM's."""
_WORTH = 1 << 29
"""Bytes of libraries, beside the one that takes longest, that take about as long to read as a process takes
to start: 0.2 s."""
_BATCH = 1 << 24
"""Bytes of libraries that are asked for together."""
_BY_KERNELS = 16
"""How many bytes each counts for of a library whose kernels' names must be read: they are compressed."""


@dataclass(frozen=True)
class File:
    """A file of a tree: where it is, its path in the tree, and its size in bytes."""

    path: str
    name: str
    size: int


def read_files(files: Sequence[File], above: str, progress: Progress) -> dict[str, list[LibrarySummary]]:
    """The libraries with device code that each file holds, by the files' paths; `above` as in `read_file`.

    `progress` is called with the name of each before it is read: those that take longest come first where
    several processes read.
    """
    found = dict(_by_others(files, above, progress))
    for file in files:
        if file.path not in found:
            found[file.path] = read_file(Path(file.path), file.name, above, progress)
    return found


def _by_others(
    files: Sequence[File], above: str, progress: Progress
) -> Iterator[tuple[str, list[LibrarySummary]]]:
    """Libraries among the files with what they hold, as they are read; none where that is not faster."""
    processors = memory.processors()
    if processors < 2 or not sys.executable or sum(_effort(file, above) for file in files) < _WORTH:
        return  # before a file is opened
    libraries = [file for file in files if is_library(file.path)]
    efforts = sorted(_effort(file, above) for file in libraries)
    batches = _batches(libraries, above)
    jobs = min(processors, _MOST, len(batches))
    if jobs < 2 or sum(efforts[:-1]) < _WORTH:
        return

    def begun(index: int) -> None:
        for file in batches[index]:
            progress(above + file.name)

    requests = [
        {"above": above, "files": [(path_as_text(Path(file.path)), file.name) for file in batch]}
        for batch in batches
    ]
    try:
        with closing(workers.answers(workers.command(_READER), requests, jobs, begun)) as answers:
            for index, answer in answers:
                for file, packed in zip(batches[index], answer["files"], strict=True):
                    yield file.path, [LibrarySummary.from_json(*library) for library in packed]
    except (ResourceError, OSError):
        return  # the caller reads what is left, one library after another


def _batches(files: Sequence[File], above: str) -> list[list[File]]:
    """The files in groups that are worth a request each, those that take longest first."""
    batches: list[list[File]] = []
    room = 0
    for file in sorted(files, key=lambda file: _effort(file, above), reverse=True):
        if room <= 0:
            batches.append([])
            room = _BATCH
        batches[-1].append(file)
        room -= _effort(file, above)
    return batches


def _effort(file: File, above: str) -> int:
    """How many bytes of a library that is soon read take as long."""
    return file.size * (_BY_KERNELS if features.by_kernels(above + file.name) else 1)
