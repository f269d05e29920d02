"""Wheels as canonical zip files: the same files give the same bytes, and nothing is held in memory.

Sorted names, one time, two modes; what does not get smaller is stored. The bytes of what is compressed
are zlib's: another version of zlib may give others, of the same contents.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.builders.wheels.records import encoded
from vllm_variants.export.checked import lost
from vllm_variants.export.members import Member

_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip file can say."""
_CHUNK = 1 << 20
_SAMPLE, _SAMPLES = 1 << 16, 16
_SMALL = 1 << 18
_WORTH = 0.9
"""A file is compressed where samples of it become smaller than this part of themselves."""


@dataclass(frozen=True)
class WrittenWheel:
    """A wheel that was written: its file name, its sha256 and its size in bytes."""

    file: str
    sha256: str
    size: int


def write(path: Path, members: Sequence[Member], record: str, advance: Callable[[int], None]) -> WrittenWheel:
    """Write a wheel of `members` to `path`, with the RECORD named `record`, made anew, at its end.

    dist-info comes last, as the wheel's specification recommends. `advance` hears of bytes as they are
    read. Raises `DamagedError` for a file that is not what its `recorded` hash says, `OSError`.
    """
    order = sorted(members, key=lambda member: (".dist-info/" in member.name, member.name))
    with zipfile.ZipFile(path, "w", allowZip64=True) as wheel:
        rows = sorted(_add(wheel, member, advance) for member in order)
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([*rows, [record, "", ""]])
        _add(wheel, Member(record, data=text.getvalue().encode()), advance)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenWheel(path.name, digest, path.stat().st_size)


def _add(wheel: zipfile.ZipFile, member: Member, advance: Callable[[int], None]) -> list[str]:
    """Add a file; its row of the RECORD."""
    info = zipfile.ZipInfo(member.name, _TIME)
    info.create_system = 3  # Unix, whatever the system: the modes are Unix's
    info.external_attr = (0o100755 if member.executable else 0o100644) << 16
    with ExitStack() as stack:
        source = None
        if member.path:
            source = stack.enter_context(_opened(member.path))
        info.file_size = member.size
        info.compress_type = _compression(source, info.file_size)
        target = stack.enter_context(wheel.open(info, "w"))
        found, of_tree = hashlib.sha256(member.data), hashlib.sha256()
        target.write(member.data)
        if source:
            of_tree.update(source.read(member.replaced))
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                found.update(chunk)
                of_tree.update(chunk)
                advance(len(chunk))
    if member.path and member.recorded and encoded(of_tree) != member.recorded:
        raise lost(member.path)
    return [member.name, encoded(found), str(info.file_size)]


def _opened(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise lost(path) from error


def _compression(source: io.BufferedReader | None, size: int) -> int:
    """Whether a file gets smaller; looks at some parts of a large one, and leaves it at its beginning."""
    if source is None or size < _SMALL:
        return zipfile.ZIP_DEFLATED
    before = after = 0
    for index in range(_SAMPLES):
        source.seek(index * (size - _SAMPLE) // (_SAMPLES - 1))
        sample = source.read(_SAMPLE)
        before, after = before + len(sample), after + len(zlib.compress(sample, 1))
    source.seek(os.SEEK_SET)
    return zipfile.ZIP_DEFLATED if after < _WORTH * before else zipfile.ZIP_STORED
