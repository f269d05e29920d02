"""The names of a container's kernels, from one of its images: the compiler gives every image the same source.

Of a cubin they are the names in its symbol table, of a PTX its `.entry` directives; both are mangled.
"""

from __future__ import annotations

from vllm_variants.errors import InputError
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.codecs import raw_payload
from vllm_variants.fatbin.container import Container, Image
from vllm_variants.fatbin.native import ptx
from vllm_variants.fatbin.native.cubin import Bytes
from vllm_variants.fatbin.source import Malformed, Source
from vllm_variants.model.capability import Kind

_NAMES = ".strtab"
_LARGEST = 1 << 28
"""Bytes of an image, decompressed, that its names are worth; the largest seen is 66 MB."""


def kernels(source: Source, container: Container, stubs: frozenset[int]) -> frozenset[str]:
    """Mangled names of the kernels in the smallest image that has any; empty where none can be read.

    An image for a target that a kernel is not compiled for may lack it, so the next one is asked too.
    """
    real = [image for n, image in enumerate(container.images) if n not in stubs and image.kind]
    real.sort(key=lambda image: (image.kind is Kind.PTX, image.original_size))
    for image in real:
        if image.original_size > _LARGEST:
            continue
        try:
            names = _of_image(source, image)
        except InputError:
            continue  # a name is a help, never a verdict: what is broken, reading containers says
        if names:
            return names
    return frozenset()


def _of_image(source: Source, image: Image) -> frozenset[str]:
    raw = raw_payload(source, image)
    if image.kind is Kind.PTX:
        return ptx.parse(raw.rstrip(b"\0")).entries
    cubin = Bytes("a cubin", raw)
    try:
        table = elfs.section_named(cubin, _NAMES)
    except Malformed:
        return frozenset()
    names = cubin.at(table.offset, table.file_size).split(b"\0") if table else []
    return frozenset(name.decode("utf-8", "replace") for name in names if name and not name.startswith(b"."))
