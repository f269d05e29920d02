"""Writes images into a layout: each layer once, however many images have it.

A layer's blob depends on its tar archive alone. Compressing takes far longer than reading, so where an
earlier image has a layer of the same name and size, the archive's digest is computed first, and what
was compressed before is taken again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vllm_variants.export import image, layers, tarring
from vllm_variants.export.base_layout import Base
from vllm_variants.export.layers import Layer
from vllm_variants.export.layout import CONFIG, LAYER, MANIFEST, REF_NAME, Descriptor, Layout
from vllm_variants.export.options import Talk
from vllm_variants.export.portable import Portable
from vllm_variants.export.tarring import Compression, Packed, TarWriter


@dataclass(frozen=True)
class Image:
    """An image that was written: its tag, the descriptor of its manifest, and what its layers are."""

    tag: str
    manifest: dict[str, object]
    layers: list[dict[str, object]]

    def as_dict(self) -> dict[str, object]:
        """The image in the manifest of an export."""
        return {"tag": self.tag, "digest": self.manifest["digest"], "layers": self.layers}


@dataclass(frozen=True)
class _Written:
    """A layer in the layout: its blob, and the digest of the archive that it unpacks to."""

    name: str
    blob: Descriptor
    diff_id: str

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "digest": self.blob.digest, "bytes": self.blob.size}


@dataclass
class ImageWriter:
    """Adds images to `layout`, all on one base; `total` is the bytes of all that they hold besides it."""

    layout: Layout
    base: Base
    compression: Compression
    talk: Talk
    total: int
    _done: int = 0
    _known: dict[tuple[str, int], list[_Written]] = field(default_factory=dict)

    def add(self, made: Portable) -> Image:
        """Write one image's layers, configuration and manifest. Raises `OSError`."""
        parts = layers.layers(made, len(self.base.layers))
        added = [self._packed("home", _add_home), *map(self._layer, parts)]
        labels = image.labels_of(made)
        diff_ids = [*self.base.diff_ids, *(layer.diff_id for layer in added)]
        document = image.config(made, self.base.config, labels, diff_ids, [layer.name for layer in added])
        config = self.layout.add(CONFIG, document)
        descriptors = [*self.base.layers, *(layer.blob for layer in added)]
        manifest = self.layout.add(
            MANIFEST,
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config.as_dict(),
                "layers": [descriptor.as_dict() for descriptor in descriptors],
                "annotations": labels,
            },
        )
        tag = image.tag(made)
        of_base = [_Written(self.base.name, layer, "").as_dict() for layer in self.base.layers]
        described = manifest.as_dict(platform=image.platform(made), annotations={**labels, REF_NAME: tag})
        return Image(tag, described, [*of_base, *(layer.as_dict() for layer in added)])

    def _layer(self, layer: Layer) -> _Written:
        size = sum(entry.size for entry in layer.entries)
        similar = self._known.setdefault((layer.name, size), [])

        def add_to(writer: TarWriter) -> None:
            tarring.add_tree(writer, layer.entries, image.PREFIX, self._advance)

        if not similar or not (found := _same(similar, layer)):
            found = self._packed(layer.name, add_to)
            similar.append(found)
        self._done += size
        self._advance(0, 0)
        return found

    def _advance(self, done: int, _: int) -> None:
        self.talk.advance(self._done + done, self.total)

    def _packed(self, name: str, add_to: Callable[[TarWriter], None]) -> _Written:
        """Write a layer to the layout, with what `add_to` puts into it."""
        with self.layout.new_blob() as file:
            packed = Packed(file, self.compression)
            with tarring.writing(packed) as writer:
                add_to(writer)
            packed.finish()
            self.layout.keep(file, packed.digest)
        kind = f"{LAYER}+{self.compression}"
        return _Written(name, Descriptor(kind, packed.digest, packed.size), packed.inner_digest)


def _same(similar: list[_Written], layer: Layer) -> _Written | None:
    """The one of `similar` that unpacks to the archive that `layer` would be."""
    with Path(os.devnull).open("wb") as nowhere:
        packed = Packed(nowhere, Compression.NONE)
        with tarring.writing(packed) as writer:
            tarring.add_tree(writer, layer.entries, image.PREFIX)
        packed.finish()
    return next((known for known in similar if known.diff_id == packed.inner_digest), None)


def _add_home(writer: TarWriter) -> None:
    """What may be written to: the user's home, for any user of group 0, and /tmp."""
    home = image.HOME.lstrip("/")
    writer.add_folder("srv")
    writer.add_folder(home, 0o775, image.USER)
    writer.add_folder(f"{home}/.cache", 0o775, image.USER)
    writer.add_folder("tmp", 0o1777)
