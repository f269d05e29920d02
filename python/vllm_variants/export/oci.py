"""The forms `oci` and `oci-archive`: an image for each variant, in a layout that any container tool reads.

No daemon and no root: a layer is a tar archive, and an image two JSON documents (image-spec v1.1). The same
result and base give the same digests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_variants.errors import UsageError, resource_error
from vllm_variants.export import (
    base_debian,
    base_layout,
    destinations,
    image,
    portable,
    push,
    report,
    sources,
    tarring,
    workspace,
)
from vllm_variants.export.base_layout import Base
from vllm_variants.export.destinations import Destination, Form
from vllm_variants.export.image_writer import Image, ImageWriter
from vllm_variants.export.layout import INDEX, REF_NAME, Layout
from vllm_variants.export.options import Options, Talk
from vllm_variants.export.portable import Portable
from vllm_variants.export.report import Exported
from vllm_variants.export.tarring import Compression
from vllm_variants.model.results import Result
from vllm_variants.store import disk
from vllm_variants.system import atomic, new_folder
from vllm_variants.versions import numbers

_RATIO = 0.5
"""No result was seen whose layers come to more of its size: 0.36 to 0.41 is usual (docs/export.md)."""
_BASE = 200_000_000
"""Bytes of a base's packages, packed and not."""


def export(results: Sequence[Result], destination: Destination, options: Options, talk: Talk) -> Exported:
    """Make the layout, and with `options.push` copy its images to a registry.

    Raises `UsageError`, `MissingError` for a base or a registry that cannot be used, `UnsupportedError` for a
    result of another platform, `ResourceError` where the disk refuses, `Error` where the registry does.
    """
    _require(results, destination, options)
    try:
        with workspace.opened() as work, _layout(destination) as layout:
            images, facts = _images(results, destination.form, layout, work, options, talk)
            document = report.document(destination.form, results, facts)
            index = [*_index(images, results, layout)]
            layout.finish(index, report.text(document).encode())
    except OSError as error:
        raise resource_error(error) from error
    if options.push:
        tags = [str(_annotations(listed)[REF_NAME]) for listed in index]
        pushed = push.push(destination.path, destination.form, options.push, tags, talk.say)
        facts = {**facts, "pushed": pushed}
    return Exported(destination, tuple(results), layout.size, facts)


def _require(results: Sequence[Result], destination: Destination, options: Options) -> None:
    """Raise an `Error` for what can be known to go wrong before work starts."""
    base = _named_base(options)
    for result in results:
        sources.require_this_platform(result)
    if ":" in str(destination.path):
        raise UsageError(
            f"{destination.path} has a colon, which container tools take for a tag's", hint="name another"
        )
    if options.push:
        push.require(options.push, len(results))
    if base_debian.is_named(base):
        base_debian.require(base)
    elif base.startswith("oci:"):
        _, manifest, _ = base_layout.find(base, image.platform_of(results[0].manifest))
        if options.gzip and any(layer["mediaType"].endswith("+zstd") for layer in manifest["layers"]):
            raise UsageError(
                f"--gzip is for what does not read zstd, and layers of {base} are zstd",
                hint="name a base whose layers are gzip, or leave out --gzip",
            )
    else:
        raise UsageError(f"{base} names no base", hint="write --base oci:DIR[:TAG] or debian:SUITE")
    size, _ = disk.disk_use(*(result.path for result in results))
    needed = int(size * _RATIO) + _BASE
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


def _named_base(options: Options) -> str:
    return options.base or f"debian:{base_debian.SUITE}"


def _images(
    results: Sequence[Result], form: Form, layout: Layout, work: Path, options: Options, talk: Talk
) -> tuple[list[Image], dict[str, Any]]:
    """An image for each result, and the facts of them for the manifest of the export."""
    compression = Compression.GZIP if options.gzip else Compression.ZSTD
    base, manifest = _named_base(options), results[0].manifest
    if base_debian.is_named(base):
        stands_on = base_debian.taken(base, manifest.system, layout, compression, work, talk.say)
    else:
        stands_on = base_layout.taken(base, image.platform_of(manifest), layout)
    made = portable.prepared(results, form, options, talk, work, stands_on.parts)
    for each in made:
        _require_glibc(each, stands_on)
    writer = ImageWriter(layout, stands_on, compression, talk, sum(each.tree.size for each in made))
    images = [writer.add(each) for each in made]
    facts = {
        "base": stands_on.name,
        "compression": compression.value,
        "python": made[0].runtime.as_dict(),
        "images": [each.as_dict() for each in images],
    }
    return images, facts


def _require_glibc(made: Portable, base: Base) -> None:
    """Raise `UsageError` for a base whose glibc is older than the Python that comes along wants."""
    if base.glibc and numbers(base.glibc) < numbers(made.runtime.glibc):
        raise UsageError(
            f"{base.name} has glibc {base.glibc}, and the Python to include needs {made.runtime.glibc}",
            hint="name a newer base, or a Python that needs less: uv's",
        )


def _index(
    images: Sequence[Image], results: Sequence[Result], layout: Layout
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
        name = "-".join(sorted({result.manifest.release for result in results}))
        yield layout.add(INDEX, document).as_dict(annotations={REF_NAME: name})


def _annotations(descriptor: Mapping[str, object]) -> Mapping[str, str]:
    annotations: Any = descriptor["annotations"]
    return dict(annotations)
