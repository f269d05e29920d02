"""The base of an image from an image layout on disk, as `skopeo copy docker://… oci:DIR` makes one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vllm_variants.errors import InputError, MissingError
from vllm_variants.export.layout import LAYER, LICENCES, REF_NAME, Descriptor, Layout
from vllm_variants.export.others import Other

_BLOCK = 1 << 20
_NESTED = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Base:
    """What an image stands on: its layers, which the layout holds by now, their diff IDs, its configuration.

    `name` says what it is, to people, and is no path of this machine; `glibc` is the version in it, where
    that is known; `parts` are what it is made of, for a bill of materials.
    """

    name: str
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    config: Mapping[str, Any]
    glibc: str = ""
    parts: tuple[Other, ...] = ()


def find(text: str, platform: Mapping[str, str]) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The layout that `oci:DIR[:TAG]` names, with the manifest and the configuration of its image.

    Raises `MissingError` where there is no layout or no such image, `InputError` for what is broken or of
    another platform.
    """
    name = text.removeprefix("oci:")
    folder, tag = Path(name), ""
    if not folder.is_dir() and ":" in name:
        folder, tag = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    if not (folder / "oci-layout").is_file():
        raise MissingError(
            f"{folder} is no image layout",
            hint=f"make one: skopeo copy docker://debian:stable-slim oci:{folder}",
        )
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        manifest = _image(folder, index["manifests"], tag, platform)
        config = _document(folder, manifest["config"])
        if {name: config[name] for name in platform} != dict(platform):
            raise InputError(
                f"the base {text} is for {config['os']}/{config['architecture']}",
                hint="name one of this platform",
            )
        _require_usable(folder, manifest, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} is no image layout that can be read: {error!r}") from error
    return folder, manifest, config


def taken(text: str, platform: Mapping[str, str], layout: Layout) -> Base:
    """The base that `oci:DIR[:TAG]` names, its layers copied into `layout`; raises as `find` does."""
    folder, manifest, config = find(text, platform)
    layers = []
    for layer in manifest["layers"]:
        _copy(folder, layer, layout)
        layers.append(Descriptor(layer["mediaType"], layer["digest"], layer["size"]))
    part, diff_ids = _part(manifest, config), tuple(config["rootfs"]["diff_ids"])
    return Base(f"{part.name}@{part.version}", tuple(layers), diff_ids, config, parts=(part,))


def _require_usable(folder: Path, manifest: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise `InputError`, or what Python raises, unless all that an image takes of its base is there."""
    layers, diff_ids = manifest["layers"], config["rootfs"]["diff_ids"]
    for layer in layers:
        if not layer["mediaType"].startswith(LAYER):
            raise InputError(
                f"{folder} has a layer of the kind {layer['mediaType']}",
                hint="copy it with skopeo --format oci",
            )
        path = _path(folder, layer)
        if not path.is_file() or path.stat().st_size != layer["size"]:
            raise _damaged(folder, layer)
    if len(layers) != len(diff_ids):
        raise ValueError(f"{len(layers)} layers and {len(diff_ids)} diff IDs")
    settings = config.get("config") or {}
    _ = [text.partition("=") for text in settings.get("Env") or ()], {**(settings.get("Labels") or {})}
    _ = [{**entry} for entry in config.get("history") or ()]


def _part(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> Other:
    """The base as one part, by its configuration's digest: what is in it, its own bill of materials says."""
    digest = str(manifest["config"]["digest"])
    licence = ((config.get("config") or {}).get("Labels") or {}).get(LICENCES)
    return Other(
        "base-image",
        digest,
        f"pkg:oci/base-image@{quote(digest, safe='')}",
        (str(licence),) if licence else (),
        "the image that this one stands on",
    )


def _image(
    folder: Path, manifests: Sequence[Mapping[str, Any]], tag: str, platform: Mapping[str, str]
) -> dict[str, Any]:
    """The manifest of the image with that tag, or of the only one."""
    named = [m for m in manifests if not tag or (m.get("annotations") or {}).get(REF_NAME) == tag]
    fitting = [
        m
        for m in named
        if {**platform, **(m.get("platform") or {})}["architecture"] == platform["architecture"]
    ]
    if len(fitting) != 1:
        raise MissingError(
            f"{folder} has {len(fitting)} images{f' called {tag}' if tag else ''} of this platform",
            hint=f"name one: --base oci:{folder}:TAG",
        )
    document = _document(folder, fitting[0])
    nested = fitting[0].get("mediaType") == _NESTED
    return _image(folder, document["manifests"], "", platform) if nested else document


def _document(folder: Path, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    data = _path(folder, descriptor).read_bytes()
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor["digest"]:
        raise _damaged(folder, descriptor)
    document: dict[str, Any] = json.loads(data)
    return document


def _copy(folder: Path, descriptor: Mapping[str, Any], layout: Layout) -> None:
    found = hashlib.sha256()
    with _path(folder, descriptor).open("rb") as source, layout.new_blob() as target:
        while block := source.read(_BLOCK):
            found.update(block)
            target.write(block)
        if f"sha256:{found.hexdigest()}" != descriptor["digest"]:
            raise _damaged(folder, descriptor)
        layout.keep(target, descriptor["digest"])


def _damaged(folder: Path, descriptor: Mapping[str, Any]) -> InputError:
    return InputError(f"{folder}: the blob {descriptor['digest']} is damaged", hint="copy the base anew")


def _path(folder: Path, descriptor: Mapping[str, Any]) -> Path:
    algorithm, _, digest = str(descriptor["digest"]).partition(":")
    return folder / "blobs" / algorithm / digest
