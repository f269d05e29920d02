"""Tar archives that depend on their content alone: sorted, owned by root, one moment, two modes.

The format is POSIX's pax (IEEE 1003.1), whose extra headers are written only for names that need them.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Protocol, cast

import zstandard

from vllm_variants.export import checked
from vllm_variants.export.tree import Entry, File, Link, folders_of
from vllm_variants.system.progress import Advance

MOMENT = 315532800
"""1980-01-01T00:00:00Z, in seconds: the oldest that zip files can hold, as repairwheel has it."""
ZSTD_LEVEL = 9
GZIP_LEVEL = 6
THREADS = 2
"""Of zstd. With one or more the same bytes come, however many (zstd's manual, ZSTD_c_nbWorkers)."""
_BUFFER = 1 << 20


class Compression(StrEnum):
    """How an archive is compressed."""

    NONE = "none"
    ZSTD = "zstd"
    GZIP = "gzip"


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(compression: Compression) -> _Compressor:
    if compression is Compression.ZSTD:
        return zstandard.ZstdCompressor(
            level=ZSTD_LEVEL, threads=THREADS, write_checksum=True, write_content_size=False
        ).compressobj()
    if compression is Compression.GZIP:  # zlib's own header has no name and no moment (RFC 1952)
        return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    return _Plain()


class Packed(io.RawIOBase):
    """A stream that compresses what is written to it into `out`, and knows the SHA-256 of both sides.

    `size` is in bytes of what went to `out`, `unpacked` of what came in; whole after `finish`.
    """

    def __init__(self, out: IO[bytes], compression: Compression) -> None:
        self._out, self._compressor = out, _compressor(compression)
        self._inner, self._outer = hashlib.sha256(), hashlib.sha256()
        self.size = self.unpacked = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes that came in."""
        return self.unpacked

    def write(self, data: Any, /) -> int:
        """Compress some bytes."""
        self._inner.update(data)
        self.unpacked += len(data)
        self._pass_on(self._compressor.compress(data))
        return len(data)

    def finish(self) -> None:
        """Write what is left."""
        self._pass_on(self._compressor.flush())
        self._out.flush()

    def _pass_on(self, packed: bytes) -> None:
        if packed:
            self._outer.update(packed)
            self.size += len(packed)
            self._out.write(packed)

    @property
    def inner_digest(self) -> str:
        """`sha256:…` of what came in."""
        return f"sha256:{self._inner.hexdigest()}"

    @property
    def digest(self) -> str:
        """`sha256:…` of what went out."""
        return f"sha256:{self._outer.hexdigest()}"


class TarWriter:
    """Adds entries to a tar stream."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def add_folder(self, path: str, mode: int = 0o755, user: int = 0) -> None:
        """A folder; its path has no slash at the end."""
        self._archive.addfile(_header(path, tarfile.DIRTYPE, mode, user))

    def add(self, entry: Entry, prefix: str = "") -> None:
        """An entry, at `prefix` + its path. Raises `DamagedError` for a file that is another, `OSError`."""
        path = prefix + entry.path
        if isinstance(entry, Link):
            self.add_link(path, entry.target)
            return
        header = _header(path, tarfile.REGTYPE, 0o755 if entry.executable else 0o644)
        header.size = entry.size
        if isinstance(entry, File):
            with checked.reading(entry.source, entry.size, entry.recorded) as source:
                self._archive.addfile(header, cast("IO[bytes]", source))
        else:
            self._archive.addfile(header, io.BytesIO(entry.data))

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link."""
        header = _header(path, tarfile.SYMTYPE, 0o777)
        header.linkname = target
        self._archive.addfile(header)

    def add_stream(self, path: str, source: IO[bytes], size: int, *, executable: bool = False) -> None:
        """A file whose `size` bytes come from an open file."""
        header = _header(path, tarfile.REGTYPE, 0o755 if executable else 0o644)
        header.size = size
        self._archive.addfile(header, source)


@contextmanager
def writing(out: IO[bytes] | Packed) -> Iterator[TarWriter]:
    """A tar archive that is written to `out`, ended when the block ends without an error."""
    stream: Any = out
    archive = tarfile.TarFile(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=_BUFFER
    )
    yield TarWriter(archive)
    archive.close()  # not on an error: an archive that has an end is whole


def add_tree(
    writer: TarWriter, entries: Sequence[Entry], prefix: str = "", advance: Advance = lambda done, total: None
) -> None:
    """Add entries with all folders above them, a folder before what is in it, `prefix` (`opt/vllm/`) too."""
    total, done = sum(entry.size for entry in entries), 0
    parents = [str(parent) for parent in reversed(Path(prefix).parents)][1:] if prefix else []
    for folder in [*parents, *([prefix.rstrip("/")] if prefix else [])]:
        writer.add_folder(folder)
    named: list[tuple[str, Entry | None]] = [(folder, None) for folder in folders_of(entries)]
    named += [(entry.path, entry) for entry in entries]
    for path, entry in sorted(named, key=lambda item: item[0].split("/")):
        if entry is None:
            writer.add_folder(prefix + path)
            continue
        writer.add(entry, prefix)
        done += entry.size
        advance(done, total)


def _header(path: str, kind: bytes, mode: int, user: int = 0) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.type, header.mode, header.mtime = kind, mode, MOMENT
    header.uid, header.gid = user, 0
    return header
