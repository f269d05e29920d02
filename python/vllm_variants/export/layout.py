"""An OCI image layout: blobs by their SHA-256, and an index that names the images (image-spec v1.1).

It is a folder, or the same in a tar archive (`oci-archive:` of skopeo and podman), into which every blob
goes as soon as its digest is known.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vllm_variants.export.tarring import TarWriter

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
LICENCES = "org.opencontainers.image.licenses"
_UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Descriptor:
    """A blob: its media type, digest (`sha256:…`) and bytes."""

    media_type: str
    digest: str
    size: int

    def as_dict(self, **more: object) -> dict[str, object]:
        """The descriptor as JSON."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size, **more}


class Layout:
    """Writes a layout into `folder`, or into `archive` with `folder` for what is not finished."""

    def __init__(self, folder: Path, archive: TarWriter | None = None) -> None:
        self._folder, self._archive = folder, archive
        self._blobs = "blobs/sha256"
        self.sizes: dict[str, int] = {}
        if archive:
            archive.add_folder("blobs")
            archive.add_folder(self._blobs)
        else:
            (folder / self._blobs).mkdir(parents=True)
            for path in (folder / "blobs", folder / self._blobs):
                path.chmod(0o755)

    @contextmanager
    def new_blob(self) -> Iterator[IO[bytes]]:
        """A file for a blob's bytes; `keep` it within the block, once it is written."""
        path = self._folder / _UNFINISHED
        with path.open("w+b") as file:
            yield file
        path.unlink(missing_ok=True)

    def keep(self, file: IO[bytes], digest: str) -> None:
        """Take the blob that `new_blob` gave into the layout; one that is there already stays."""
        file.flush()
        size = os.fstat(file.fileno()).st_size
        if digest in self.sizes:
            return
        self.sizes[digest] = size
        name = f"{self._blobs}/{digest.partition(':')[2]}"
        if self._archive:
            file.seek(0)
            self._archive.add_stream(name, file, size)
        else:
            os.fchmod(file.fileno(), 0o644)
            (self._folder / _UNFINISHED).rename(self._folder / name)

    def add(self, media_type: str, document: Mapping[str, Any]) -> Descriptor:
        """Keep a JSON document as a blob."""
        data = text(document)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        with self.new_blob() as file:
            file.write(data)
            self.keep(file, digest)
        return Descriptor(media_type, digest, len(data))

    def finish(self, manifests: Sequence[Mapping[str, object]], export: bytes) -> None:
        """Write the index of the images, and `export`, the manifest of the export."""
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(manifests)}
        self._add_file("oci-layout", text({"imageLayoutVersion": "1.0.0"}))
        self._add_file("export.json", export)
        self._add_file("index.json", text(index))

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(self.sizes.values())

    def _add_file(self, name: str, data: bytes) -> None:
        if self._archive:
            self._archive.add_stream(name, io.BytesIO(data), len(data))
        else:
            (self._folder / name).write_bytes(data)
            (self._folder / name).chmod(0o644)


def text(document: Mapping[str, Any]) -> bytes:
    """A document's bytes: the same facts give the same digest."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
