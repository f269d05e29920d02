"""Container images as the OCI and docker formats have them, from a few files: small ones, for tests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Files = Mapping[str, bytes]


def layer(files: Files, links: Mapping[str, str] | None = None, folders: Sequence[str] = ()) -> bytes:
    """A layer: files by path, hard links by path to what they share, folders."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in folders:
            info = tarfile.TarInfo(path)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for path, target in (links or {}).items():
            info = tarfile.TarInfo(path)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def packed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.ZstdCompressor().compress(data) if how == "zstd" else data


def layout(
    folder: Path, layers: Sequence[bytes], architecture: str = "amd64", how: str = "", kind: str = ""
) -> Path:
    """An OCI layout with one image."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    config = json.dumps({"os": "linux", "architecture": architecture}).encode()
    manifest = {
        "schemaVersion": 2,
        "config": blob(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(packed(data, how), kind or f"{LAYER}{'+' if how else ''}{how}") for data in layers],
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), MANIFEST)]}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def docker_archive(path: Path, layers: Sequence[bytes], architecture: str = "amd64") -> Path:
    """What `docker save` writes; compressed where the path ends so."""
    names = [f"{hashlib.sha256(data).hexdigest()}/layer.tar" for data in layers]
    config = json.dumps({"os": "linux", "architecture": architecture}).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["x:latest"], "Layers": names}]
    files = {**dict(zip(names, layers, strict=True)), "config.json": config}
    data = layer({**files, "manifest.json": json.dumps(manifest).encode()})
    path.write_bytes(packed(data, {".gz": "gzip", ".zst": "zstd"}.get(path.suffix, "")))
    return path


def mistakes(folder: Path) -> Path:
    """Locks and images that cannot be audited, each in its own way."""
    files = layer({"usr/lib/x.so": b"x" * 5000})
    folder.mkdir()
    (folder / "bare.txt").write_text("torch==2.9.1\nvllm==0.13.0\n")
    (folder / "lock.txt").write_text(f"torch==2.9.1 \\\n    --hash=sha256:{'0' * 64}\n")
    docker_archive(folder / "whole.tar", [files])
    (folder / "cut.tar").write_bytes((folder / "whole.tar").read_bytes()[:4000])
    (folder / "plain.tar").write_bytes(files)
    layout(folder / "s390x", [files], "s390x")
    layout(folder / "encrypted", [files], kind=f"{LAYER}+gzip+encrypted")
    short = layout(folder / "short", [files], how="gzip")
    largest = max(
        (short / "blobs" / "sha256").iterdir(), key=lambda blob: blob.read_bytes()[:2] == b"\x1f\x8b"
    )
    largest.write_bytes(largest.read_bytes()[:-9])
    (layout(folder / "odd", [files]) / "index.json").write_text("{")
    return folder
