"""Where an image's blobs are: files of an OCI layout, or members of a tar archive, which may be compressed.

In an archive that is not compressed a blob is read where it lies. One that is compressed goes by once: every
member that is a layer is read as it comes, whichever image it is of, and small ones are kept as documents.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from vllm_variants.audit.targets.found import Progress
from vllm_variants.audit.targets.layers import DAMAGED, Layer, compression, decompressed, read_layer, reason
from vllm_variants.audit.targets.ranges import Blob, FileRange
from vllm_variants.errors import InputError

_DOCUMENT = 1 << 24
"""Bytes that a manifest, an index or a configuration may have."""
_OF_IMAGES = frozenset({"oci-layout", "repositories"})
_ENDS_OF_IMAGES = (".json", ".tar", "/VERSION")
"""How files of image archives are called, besides blobs."""


@dataclass
class Blobs:
    """The blobs of a layout or archive, by name (`index.json`, `blobs/sha256/…`).

    `layers` are those that were read already, since they came by only once.
    """

    path: Path
    ranges: dict[str, Blob] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    folder: Path | None = None
    _open: list[int] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of_folder(cls, folder: Path) -> Iterator[Blobs]:
        """The files of an OCI layout."""
        blobs = cls(folder, folder=folder)
        try:
            yield blobs
        finally:
            blobs.close()

    def close(self) -> None:
        """Close the files that were opened."""
        for descriptor in self._open:
            os.close(descriptor)

    def get(self, name: str) -> Blob | None:
        """The blob of that name; None: there is none."""
        if self.folder is None:
            return self.ranges.get(posixpath.normpath(name))
        path = self.folder / name
        if not path.is_file():
            return None
        self._open.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return Blob(str(path), self._open[-1], 0, os.fstat(self._open[-1]).st_size)

    def document(self, name: str) -> bytes | None:
        """The bytes of a manifest or the like; None: there is none, or it is too large to be one."""
        name = posixpath.normpath(name)
        if name in self.documents:
            return self.documents[name]
        blob = self.get(name)
        return blob.opened().read() if blob and blob.size <= _DOCUMENT else None


@contextmanager
def open_archive(path: Path, progress: Progress) -> Iterator[Blobs]:
    """The blobs of an archive; raises `InputError` where it is none, or is broken."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    blobs = Blobs(path, _open=[descriptor])
    try:
        whole = FileRange(descriptor, 0, os.fstat(descriptor).st_size)
        try:
            if compression(whole.peek()):
                _goes_by(blobs, decompressed(whole), progress)
            else:
                _indexed(blobs, whole, descriptor)
        except DAMAGED as error:
            raise InputError(
                f"{path} cannot be read as an image archive: {reason(error)}",
                hint="save the image again, or check that it was copied whole",
            ) from error
        yield blobs
    finally:
        blobs.close()


def is_tree(path: Path) -> bool:
    """Whether a tar archive holds a tree of folders, no image: its first file is in one and none of an image.

    False for what cannot be read: then the reader of images says why.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=decompressed(file), mode="r|") as archive:
            first = next((posixpath.normpath(member.name) for member in archive if member.isreg()), "")
    except DAMAGED:
        return False
    of_image = first.startswith("blobs/") or first in _OF_IMAGES or first.endswith(_ENDS_OF_IMAGES)
    return "/" in first and not of_image


def _indexed(blobs: Blobs, whole: FileRange, descriptor: int) -> None:
    links = {}
    with tarfile.open(fileobj=io.BufferedReader(whole), mode="r:") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if member.isreg():
                if member.offset_data + member.size > whole.size:
                    raise tarfile.ReadError("it ends early")
                where = f"{blobs.path}!{name}"
                blobs.ranges[name] = Blob(where, descriptor, member.offset_data, member.size)
            elif member.issym():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.islnk():
                links[name] = posixpath.normpath(member.linkname)
    for name, target in links.items():
        if target in blobs.ranges:
            blobs.ranges[name] = blobs.ranges[target]


def _goes_by(blobs: Blobs, stream: IO[bytes], progress: Progress) -> None:
    links = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if member.issym() or member.islnk():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            data = archive.extractfile(member) if member.isreg() else None
            if data is None:
                continue
            if (member.size <= _DOCUMENT and name.endswith(".json")) or member.size <= 1 << 16:
                blobs.documents[name] = data.read()
                continue
            progress(name)
            buffered = io.BufferedReader(cast("io.RawIOBase", data), 1 << 20)
            blobs.layers[name] = read_layer(buffered, f"{blobs.path}!{name}")
    for name, target in links.items():
        if target in blobs.layers:
            blobs.layers[name] = blobs.layers[target]
