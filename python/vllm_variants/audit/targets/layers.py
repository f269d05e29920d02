"""The layers of a container image: what each adds and removes, and what is there in the end."""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, cast

import zstandard

from vllm_variants.audit import features
from vllm_variants.audit.find import TEXT, begins_as_elf
from vllm_variants.audit.sieve import summarise_stream
from vllm_variants.audit.summary import LibrarySummary, summarise
from vllm_variants.audit.targets.ranges import Blob, FileRange

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_CHUNK = 1 << 20
DAMAGED = (tarfile.TarError, zlib.error, zstandard.ZstdError, EOFError, OSError, ValueError)
"""What reading a damaged archive or layer raises."""


def reason(error: BaseException) -> str:
    """Why something could not be read, as a clause."""
    if isinstance(error, EOFError):
        return "it ends early"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


@dataclass
class Layer:
    """What one layer holds: libraries with device code by path, all other names that it has, what it removes.

    `links` are hard links by path, to the path that they share; `opaque` folders hide what lower layers have.
    """

    libraries: dict[str, LibrarySummary] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)


@dataclass
class Files:
    """What an image has in the end: its libraries with device code, and the names of metadata folders."""

    libraries: list[LibrarySummary]
    names: list[str]


def compression(head: bytes) -> str | None:
    """How a stream that begins so is compressed: `gzip`, `zstd`, `xz`, `bzip2`, None: it is not."""
    for magic, name in (
        (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2")
    ):  # fmt: skip
        if head.startswith(magic):
            return name
    return None


def decompressed(stream: IO[bytes] | io.RawIOBase) -> IO[bytes]:
    """The stream, decompressed as its first bytes say; `ValueError` for what images do not have."""
    raw = cast("io.RawIOBase", stream)
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(raw, _CHUNK)
    match compression(buffered.peek(8)[:8]):
        case None:
            return buffered
        case "gzip":
            return cast("IO[bytes]", gzip.GzipFile(fileobj=buffered))
        case "zstd":
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
                buffered, read_across_frames=True
            )
            return io.BufferedReader(cast("io.RawIOBase", reader), _CHUNK)
        case other:
            raise ValueError(f"it is compressed with {other}")


class Padded(io.RawIOBase):
    """A tar archive with zeros up to a whole block, which `umoci insert` leaves out after the last file."""

    def __init__(self, stream: io.RawIOBase) -> None:
        super().__init__()
        self._stream, self._position = stream, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """Where what it pads is."""
        return self._stream.seekable()

    def tell(self) -> int:
        """Where the next byte is read from."""
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, as files do."""
        self._position = self._stream.seek(position, whence)
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """Read on into a buffer."""
        data = self._stream.read(len(buffer)) or bytes(min(-self._position % tarfile.BLOCKSIZE, len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def read_layer(blob: Blob | IO[bytes], name: str = "") -> Layer:
    """Read one layer. In one that is not compressed, and a blob of a file, libraries are read where they lie.

    Raises what tar, gzip and zstd raise for what is damaged.
    """
    if isinstance(blob, Blob):
        stream = blob.opened()
        if compression(stream.peek()) is None:
            return _in_place(blob, stream)
        return _streamed(decompressed(stream), blob.name)
    return _streamed(decompressed(blob), name)


def _in_place(blob: Blob, stream: FileRange) -> Layer:
    layer = Layer()
    with tarfile.open(fileobj=io.BufferedReader(Padded(stream), _CHUNK), mode="r:") as archive:
        for member in archive:
            path = _enter(layer, member)
            if path is None:
                continue
            if member.offset_data + member.size > stream.size:
                raise EOFError
            where = FileRange(
                blob.descriptor, blob.offset + member.offset_data, member.size, f"{blob.name}!{path}"
            )
            if member.size and begins_as_elf(where.peek(4)):
                _add(layer, path, summarise(where, path, features.by_kernels(path)))
    return layer


def _streamed(stream: IO[bytes], name: str) -> Layer:
    layer = Layer()
    whole = io.BufferedReader(Padded(cast("io.RawIOBase", stream)), _CHUNK)
    with tarfile.open(fileobj=whole, mode="r|", bufsize=_CHUNK) as archive:
        for member in archive:
            path = _enter(layer, member)
            data = archive.extractfile(member) if path is not None and member.size else None
            if path is None or data is None:
                continue
            head = data.read(4)
            if begins_as_elf(head):
                again = cast("IO[bytes]", _Again(head, data))
                _add(layer, path, summarise_stream(again, member.size, f"{name}!{path}", path))
        while whole.read(_CHUNK):  # padding, and what shows that the compressed stream is whole
            pass
    return layer


class _Again:
    """A stream with its first bytes, which were read already, before it."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    def read(self, count: int) -> bytes:
        """Up to `count` bytes; all of them unless the stream ends."""
        data, self._head = self._head[:count], self._head[count:]
        return data + self._rest.read(count - len(data)) if len(data) < count else data


def _enter(layer: Layer, member: tarfile.TarInfo) -> str | None:
    """Note what a member does to its layer; its path where it is a file that may hold device code."""
    path = posixpath.normpath(member.name).lstrip("/")
    folder, name = posixpath.split(path)
    if name == _OPAQUE:
        layer.opaque.add(folder)
    elif name.startswith(_WHITEOUT):
        layer.removed.add(posixpath.join(folder, name.removeprefix(_WHITEOUT)))
    elif member.islnk():
        layer.links[path] = posixpath.normpath(member.linkname).lstrip("/")
    elif member.isdir():
        layer.folders.add(path)
    else:
        layer.others.add(path)
        if member.isreg() and not path.endswith(TEXT):
            return path
    return None


def _add(layer: Layer, path: str, summary: LibrarySummary | None) -> None:
    if summary and summary.has_device_code:
        layer.libraries[path] = summary


def merged(layers: Sequence[Layer]) -> Files:
    """What is there when all layers lie upon each other, the first lowest."""
    libraries: dict[str, LibrarySummary] = {}
    infos: set[str] = set()
    for layer in layers:
        gone = _hidden(layer)
        libraries = {path: library for path, library in libraries.items() if not gone(path)}
        infos = {path for path in infos if not gone(path)}
        libraries |= layer.libraries
        infos |= {path for path in layer.others if ".dist-info/" in path}
        for path, target in layer.links.items():
            if target in layer.libraries and target not in libraries:
                libraries[path] = layer.libraries[target]
    return Files([libraries[path] for path in sorted(libraries)], sorted(infos))


def _hidden(layer: Layer) -> Callable[[str], bool]:
    """Whether a layer hides or removes a path of those below it."""
    replaced = layer.others | layer.links.keys()
    gone = layer.removed | replaced
    opaque = layer.opaque

    def hides(path: str) -> bool:
        if path in layer.folders:  # a folder in the place of a file
            return True
        above = path
        while above:
            if above in gone:
                return True
            above = posixpath.dirname(above)
            if above in opaque:
                return True
        return "" in opaque

    return hides
