"""The forms `oci` and `oci-archive`: an image for each variant, in a layout that any container tool reads.

No daemon and no root: a layer is a tar archive, and an image two JSON documents (image-spec v1.1). The same
result and base give the same digests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vllm_variants.errors import UsageError, resource_error
from vllm_variants.export import (
    base_debian,
    base_layout,
    destinations,
    image,
    layers,
    portable,
    push,
    report,
    tarring,
    tree,
)
from vllm_variants.export.base_layout import Base
from vllm_variants.export.destinations import Destination, Form
from vllm_variants.export.layers import Layer
from vllm_variants.export.layout import CONFIG, INDEX, LAYER, MANIFEST, REF_NAME, Descriptor, Layout
from vllm_variants.export.options import Options, Talk
from vllm_variants.export.portable import Portable
from vllm_variants.export.report import Exported
from vllm_variants.export.tarring import Compression, Packed
from vllm_variants.model.results import Result
from vllm_variants.store import disk
from vllm_variants.system import atomic, new_folder

_RATIO = 0.75
_BASE = 200_000_000
"""Bytes of a base's packages, packed and not."""


@dataclass
class _Progress:
    """Bytes of all images that are done, and of how many."""

    talk: Talk
    total: int
    done: int = 0

    def layer(self, done: int, size: int) -> None:
        """Of one layer."""
        self.talk.advance(self.done + done, self.total)
        if done == size:
            self.done += size


@dataclass
class _Image:
    """One image in the layout: its manifest's descriptor, and what its layers are."""

    tag: str
    manifest: dict[str, object]
    layers: list[dict[str, object]] = field(default_factory=list)


def export(results: Sequence[Result], destination: Destination, options: Options, talk: Talk) -> Exported:
    """Make the layout, and with `options.push` copy its images to a registry.

    Raises `UsageError`, `MissingError` for a base or a registry that cannot be used, `UnsupportedError` for a
    result of another platform, `ResourceError` where the disk refuses, `Error` where the registry does.
    """
    base = options.base or f"debian:{base_debian.SUITE}"
    _require(results, destination, base, options)
    with portable.prepared(results, destination.form, options, talk) as made:
        try:
            with _layout(destination) as layout:
                images, facts = _images(made, base, layout, options, talk)
                document = report.document(destination.form, results, facts)
                index = [*_index(images, made, layout)]
                layout.finish(index, report.text(document).encode())
            size = layout.size
        except OSError as error:
            raise resource_error(error) from error
    tags = [str(_annotations(listed)[REF_NAME]) for listed in index]
    pushed = (
        push.push(destination.path, destination.form, options.push, tags, talk.say) if options.push else []
    )
    return Exported(destination, tuple(results), size, {**facts, **({"pushed": pushed} if pushed else {})})


def _require(results: Sequence[Result], destination: Destination, base: str, options: Options) -> None:
    """Raise an `Error` for what can be known to go wrong before work starts."""
    if ":" in str(destination.path):
        raise UsageError(
            f"{destination.path} has a colon, which container tools take for a tag's", hint="name another"
        )
    if options.push:
        push.require(options.push, len(results))
    if base_debian.is_named(base):
        base_debian.require(base)
    elif base.startswith("oci:"):
        base_layout.find(base, image.platform_of(results[0].manifest))
    else:
        raise UsageError(f"{base} names no base", hint="write --base oci:DIR[:TAG] or debian:SUITE")
    needed = sum(int(tree.size_of(result) * _RATIO) for result in results) + _BASE
    destinations.require_room(destination, needed)


@contextmanager
def _layout(destination: Destination) -> Iterator[Layout]:
    """The layout to write to, which gets its name when the block ends."""
    path = destination.path
    if destination.form is Form.OCI:
        with new_folder.aside(path) as folder:
            yield Layout(folder)
            folder.chmod(0o755)
            disk.sync_file_system(folder)
            new_folder.publish(folder, path)
        return
    with atomic.new_file(path, 0o644) as new, new_folder.aside(path) as folder:
        with os.fdopen(os.dup(new.descriptor), "wb") as file, tarring.writing(file) as writer:
            yield Layout(folder, writer)
        destinations.require_absent(destination)
        new.publish()


def _images(
    made: Sequence[Portable], base: str, layout: Layout, options: Options, talk: Talk
) -> tuple[list[_Image], dict[str, Any]]:
    """An image for each result, and the facts of them for the manifest of the export."""
    compression = Compression.GZIP if options.gzip else Compression.ZSTD
    platform = image.platform(made[0])
    if base_debian.is_named(base):
        stands_on = base_debian.taken(base, made[0].result.manifest.system, layout, compression, talk.say)
    else:
        stands_on = base_layout.taken(base, platform, layout)
    progress = _Progress(talk, sum(each.tree.size for each in made))
    images = [_image(each, stands_on, layout, compression, progress) for each in made]
    facts = {
        "base": stands_on.name,
        "compression": compression.value,
        "python": made[0].runtime.as_dict(),
        "images": [{"tag": i.tag, "digest": i.manifest["digest"], "layers": i.layers} for i in images],
    }
    return images, facts


def _image(
    made: Portable, base: Base, layout: Layout, compression: Compression, progress: _Progress
) -> _Image:
    """Write one image's layers, configuration and manifest."""
    parts = layers.layers(made, len(base.layers))
    written = [(layer, *_layer(layer, layout, compression, progress)) for layer in parts]
    home, home_id = _home(layout, compression)
    labels = image.labels_of(made)
    diff_ids = [*base.diff_ids, home_id, *(diff_id for _, _, diff_id in written)]
    names = ["home", *(layer.name for layer, _, _ in written)]
    config = layout.add(CONFIG, image.config(made, base.config, labels, diff_ids, names))
    added = [home, *(descriptor for _, descriptor, _ in written)]
    descriptors = [*base.layers, *added]
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.as_dict(),
        "layers": [descriptor.as_dict() for descriptor in descriptors],
        "annotations": labels,
    }
    manifest = layout.add(MANIFEST, document)
    tag = image.tag(made)
    facts: list[dict[str, object]] = [
        {"name": base.name, "digest": layer.digest, "bytes": layer.size} for layer in base.layers
    ]
    facts += [
        {"name": name, "digest": d.digest, "bytes": d.size} for name, d in zip(names, added, strict=True)
    ]
    described = manifest.as_dict(platform=image.platform(made), annotations={**labels, REF_NAME: tag})
    return _Image(tag, described, facts)


def _layer(
    layer: Layer, layout: Layout, compression: Compression, progress: _Progress
) -> tuple[Descriptor, str]:
    """Write one layer; its descriptor and the digest of what it unpacks to."""
    with layout.new_blob() as file:
        packed = Packed(file, compression)
        with tarring.writing(packed) as writer:
            tarring.add_tree(writer, layer.entries, image.PREFIX, progress.layer)
        packed.finish()
        layout.keep(file, packed.digest)
    return Descriptor(f"{LAYER}+{compression}", packed.digest, packed.size), packed.inner_digest


def _home(layout: Layout, compression: Compression) -> tuple[Descriptor, str]:
    """The layer of what may be written to: the user's home, for any user of group 0, and /tmp."""
    with layout.new_blob() as file:
        packed = Packed(file, compression)
        with tarring.writing(packed) as writer:
            writer.add_folder("home")
            writer.add_folder(image.HOME.lstrip("/"), 0o775, image.USER)
            writer.add_folder(f"{image.HOME.lstrip('/')}/.cache", 0o775, image.USER)
            writer.add_folder("tmp", 0o1777)
        packed.finish()
        layout.keep(file, packed.digest)
    return Descriptor(f"{LAYER}+{compression}", packed.digest, packed.size), packed.inner_digest


def _index(
    images: Sequence[_Image], made: Sequence[Portable], layout: Layout
) -> Iterator[Mapping[str, object]]:
    """What the layout's index lists: each image by its tag, and one index of all where there are several."""
    for each in images:
        yield each.manifest
    if len(images) > 1:
        inner = [
            {
                **each.manifest,
                "annotations": {k: v for k, v in _annotations(each.manifest).items() if k != REF_NAME},
            }
            for each in images
        ]
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": inner}
        name = "-".join(sorted({each.result.manifest.release for each in made}))
        yield layout.add(INDEX, document).as_dict(annotations={REF_NAME: name})


def _annotations(descriptor: Mapping[str, object]) -> Mapping[str, str]:
    annotations: Any = descriptor["annotations"]
    return dict(annotations)
