"""Container images on disk: an OCI layout, or an archive as `docker save`, `skopeo` and `buildah` write it.

Nothing is unpacked. Each layer goes by once, in whatever order it lies in the archive; which files an image
then has, its manifest says: a later layer's files hide those of earlier ones, and its whiteouts
(`.wh.NAME`, `.wh..wh..opq`) remove them. Source: OCI Image Format Specification, "Image Layer Filesystem
Changeset"; docker's image specification v1.2 for `manifest.json`.
"""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.audit.targets.archives import Blobs, is_tree, open_archive
from vllm_variants.audit.targets.found import Found, Kind, Progress, release_in
from vllm_variants.audit.targets.layers import DAMAGED, Layer, merged, read_layer, reason
from vllm_variants.audit.targets.ranges import Blob
from vllm_variants.errors import InputError

_PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Image:
    """One image: its layers' names in the archive, the lowest first, and the platform it is for.

    `sizes` are those that its manifest says its layers have, in bytes.
    """

    layers: tuple[str, ...]
    platform: str
    sizes: tuple[int | None, ...] = ()


def read_layout(folder: Path, progress: Progress) -> Found:
    """The image in an OCI layout; `InputError` for one that is broken, encrypted or for another platform."""
    with Blobs.of_folder(folder) as blobs:
        return _read(blobs, Kind.OCI_LAYOUT, progress)


def read_archive(path: Path, progress: Progress) -> Found:
    """The image in an archive, compressed or not, or the tree of files; raises as `read_layout` does."""
    if is_tree(path):
        return _read_tree(path)
    with open_archive(path, progress) as blobs:
        return _read(blobs, Kind.IMAGE_ARCHIVE, progress)


def _read_tree(path: Path) -> Found:
    """A tree of files in an archive, such as an export has it."""
    try:
        with path.open("rb") as file:
            files = merged([read_layer(file, str(path))])
    except DAMAGED as error:
        raise InputError(
            f"{path} cannot be read: {reason(error)}", hint="make it again, or check that it was copied whole"
        ) from error
    if not files.libraries and not files.names:
        raise _no_image(path)
    return Found(Kind.FOLDER, tuple(files.libraries), release_in(files.names))


def _no_image(path: Path) -> InputError:
    return InputError(
        f"{path} has no image in it: neither index.json nor manifest.json names one",
        hint="name an OCI layout, or what `docker save` or `skopeo copy … docker-archive:` wrote",
    )


def _read(blobs: Blobs, kind: Kind, progress: Progress) -> Found:
    image, notes = choose(blobs)
    layers = []
    for number, name in enumerate(image.layers, 1):
        progress(f"layer {number} of {len(image.layers)}")
        size = image.sizes[number - 1] if image.sizes else None
        layers.append(_layer(blobs, name, number, size))
    files = merged(layers)
    return Found(kind, tuple(files.libraries), release_in(files.names), notes)


def _layer(blobs: Blobs, name: str, number: int, size: int | None) -> Layer:
    if name in blobs.layers:
        return blobs.layers[name]
    blob = io.BytesIO(blobs.documents[name]) if name in blobs.documents else blobs.get(name)
    if blob is None:
        raise InputError(
            f"{blobs.path} has no layer {name}, which its manifest names",
            hint="save or copy the image again",
        )
    if size is not None and isinstance(blob, Blob) and blob.size != size:
        raise InputError(
            f"layer {number} of {blobs.path} has {blob.size} bytes, and its manifest says {size}",
            hint="save or copy the image again",
        )
    try:
        return read_layer(blob, f"{blobs.path}!{name}")
    except DAMAGED as error:
        raise InputError(
            f"layer {number} of {blobs.path} cannot be read: {reason(error)}",
            hint="save or copy the image again",
        ) from error


# ── which image ──


def choose(blobs: Blobs) -> tuple[Image, tuple[str, ...]]:
    """The image to read, of those that vLLM runs on, this machine's first; notes on the choice."""
    images = list(_images(blobs))
    if not images:
        raise _no_image(blobs.path)
    host = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
    usable = [image for image in images if image.platform.removeprefix("linux/") in _PLATFORMS]
    if not usable:
        have = ", ".join(sorted({image.platform for image in images}))
        raise InputError(
            f"{blobs.path} is for {have}, and vLLM runs on linux/amd64 and linux/arm64",
            hint="copy that of another platform: skopeo copy --override-os linux --override-arch amd64 …",
        )
    chosen = next((image for image in usable if image.platform == f"linux/{host}"), usable[0])
    others = sorted({image.platform for image in images if image is not chosen})
    more = f"; also in it: {', '.join(others)}" if others else ""
    return chosen, ((f"of {len(images)} images that for {chosen.platform} is read{more}",) if others else ())


def _images(blobs: Blobs) -> Iterator[Image]:
    if (index := _json(blobs, "index.json")) is not None:
        yield from _of_index(blobs, index, depth=0)
    elif (manifest := _json(blobs, "manifest.json")) is not None:
        if not isinstance(manifest, list):
            raise _odd(blobs, "manifest.json")
        for entry in manifest:
            yield _of_docker(blobs, entry)


def _of_index(blobs: Blobs, index: Any, depth: int) -> Iterator[Image]:
    for descriptor in _list(blobs, index, "manifests"):
        kind = str(descriptor.get("mediaType", ""))
        document = _json(blobs, _blob_name(blobs, descriptor))
        if document is None:
            continue  # layouts may name manifests of other platforms that were not copied
        if ("index" in kind or "manifest.list" in kind or "manifests" in document) and depth < 3:
            yield from _of_index(blobs, document, depth + 1)
        elif descriptor.get("annotations", {}).get("vnd.docker.reference.type") != "attestation-manifest":
            yield _of_manifest(blobs, document)


def _of_manifest(blobs: Blobs, manifest: Any) -> Image:
    layers = _list(blobs, manifest, "layers")
    for number, layer in enumerate(layers, 1):
        if "+encrypted" in str(layer.get("mediaType", "")):
            raise InputError(
                f"layer {number} of {blobs.path} is encrypted",
                hint="skopeo copy --decryption-key KEY oci:… oci:… makes an image that can be read",
            )
    config = _json(blobs, _blob_name(blobs, manifest.get("config", {}))) or {}
    sizes = tuple(size if isinstance(size := layer.get("size"), int) else None for layer in layers)
    return Image(tuple(_blob_name(blobs, layer) for layer in layers), _platform(config), sizes)


def _of_docker(blobs: Blobs, entry: Any) -> Image:
    if not isinstance(entry, dict) or not isinstance(entry.get("Layers"), list):
        raise _odd(blobs, "manifest.json")
    config = _json(blobs, str(entry.get("Config", ""))) or {}
    return Image(tuple(map(str, entry["Layers"])), _platform(config))


def _platform(config: Any) -> str:
    if not isinstance(config, dict) or not config.get("architecture"):
        return "an unknown platform"
    return f"{config.get('os') or 'linux'}/{config['architecture']}"


def _blob_name(blobs: Blobs, descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    algorithm, _, value = str(digest).partition(":")
    if not value or not value.isalnum() or not algorithm.isalnum():
        raise _odd(blobs, "a manifest")
    return f"blobs/{algorithm}/{value}"


def _list(blobs: Blobs, document: Any, key: str) -> list[Mapping[str, Any]]:
    found = document.get(key) if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise _odd(blobs, "a manifest")
    return found


def _json(blobs: Blobs, name: str) -> Any:
    data = blobs.document(name)
    if data is None:
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _odd(blobs, name) from error


def _odd(blobs: Blobs, name: str) -> InputError:
    return InputError(
        f"{blobs.path} is no image that can be read: {name} is not as the OCI or docker format has it",
        hint="save or copy the image again",
    )
