"""Slim one library to given devices: read, planned, written aside, proven, and renamed over the old name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.planning import FilePlan, plan_file
from vllm_variants.fatbin.proof import Wrong, verify
from vllm_variants.fatbin.rewrite import Images, containers_in, device_sections, pieces
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import OpenFile
from vllm_variants.fatbin.stored import StoredImages
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.fatbin.writing import publish, reading, same_metadata, write_pieces, writing
from vllm_variants.model.capability import Capability, choose
from vllm_variants.system import atomic

_SIGNATURES = {"security.ima", "security.evm"}


@dataclass(frozen=True)
class FileReport:
    """What slimming did to one file; sizes in bytes. `kept` says why a file was left as it was.

    `saved` has the bytes that each rule took: `images`, `native`, `compress`, `symbols`; what compiled
    code takes more than its PTX did is negative. `sections` are the names of those that went.
    `shared_images` counts those of the `compressed_images` that another result had stored already.
    `failed`: something outside the library stood in the way, so that another run may succeed.
    `unserved` has the devices for which nothing in the file runs, not even PTX; it says nothing where
    there is no `device_code`.
    """

    path: str
    before: int
    after: int
    containers: int = 0
    stubs: int = 0
    dropped_images: int = 0
    compressed_images: int = 0
    compiled_images: int = 0
    shared_images: int = 0
    sections: tuple[str, ...] = ()
    saved: Mapping[str, int] = field(default_factory=dict)
    kept: str = ""
    failed: bool = False
    unserved: tuple[str, ...] = ()
    device_code: bool = True

    @property
    def changed(self) -> bool:
        """Whether the file was rewritten."""
        return not self.kept

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON; sizes in bytes."""
        return asdict(self) | {"sections": list(self.sections), "unserved": list(self.unserved)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> FileReport:
        """The report that `as_dict` described, after JSON made lists of its tuples."""
        lists = {name: tuple(facts[name]) for name in ("sections", "unserved")}
        return cls(**{**facts, **lists})


def slim_file(
    path: Path,
    devices: Sequence[Capability],
    rules: Rules | None = None,
    *,
    compiled: Mapping[int, Images] = MappingProxyType({}),
    stored: Sequence[Path] = (),
    to: Path | None = None,
    durable: bool = True,
    dry_run: bool = False,
) -> FileReport:
    """Slim one shared library for `devices`, in place or `to` another path, which must not exist.

    Without devices no image is dropped. `compiled` has, by a container's offset, the images of
    containers that got cubins of their own (`native.library`). `stored` are slimmed copies of the same
    library, made with the same encoding: images that they have are not compressed again. In place, a
    file with nothing to drop is not touched; `to` another path, nothing is written then. `durable`: the
    new file is on the disk before it is renamed. `dry_run`: nothing is written at all, and nothing
    proven. Raises `Malformed`, `Wrong` (the proof failed), `Untouched` (replaced meanwhile, unreadable),
    `Unwritable` or `ResourceError` (no room); the old file is whole then.
    """
    rules = rules or Rules()
    target = to or path.resolve()
    with reading(path) as source:
        elf = elfs.parse(source) if elfs.is_elf64(source) else None
        if refusal := _refusal(source, elf, rules):
            return FileReport(str(path), source.size, source.size, kept=refusal)
        assert elf

        def planned(copies: Sequence[Path]) -> FilePlan:
            with StoredImages(copies) as known:
                plan = plan_file(source, elf, devices, rules, compiled, known)
            try:
                if plan.worthwhile and not dry_run:
                    _write(source, plan, target, devices, elsewhere=bool(to), durable=durable)
            except Wrong:
                if not any(image.shared for image in plan.new_images):
                    raise
                return planned(())  # a copy was damaged: nothing is taken from any
            return plan

        plan = planned(stored)
        report = _report(path, source.size, plan)
        has_code = bool(device_sections(elf))
        return replace(report, unserved=_unserved(source, elf, devices), device_code=has_code)


def _write(
    source: OpenFile,
    plan: FilePlan,
    target: Path,
    devices: Sequence[Capability],
    *,
    elsewhere: bool,
    durable: bool,
) -> None:
    with writing(target), atomic.new_file(target) as new:
        _fill(source, plan, new.descriptor)
        same_metadata(source, new.descriptor, elsewhere=elsewhere)
        verify(source, OpenFile(str(target), new.descriptor), plan.changes, plan.unread, devices)
        publish(source, new, replaces=not elsewhere, durable=durable)


def _fill(source: OpenFile, plan: FilePlan, descriptor: int) -> None:
    write_pieces(source, pieces(source, plan.changes, plan.layout), descriptor, plan.layout.size)


def _report(path: Path, before: int, plan: FilePlan) -> FileReport:
    if not plan.worthwhile:
        return FileReport(str(path), before, before, kept=plan.why or "nothing to drop")
    new = plan.new_images
    compiled = sum(image.compiled for image in new)
    return FileReport(
        str(path), before, plan.layout.size, len(plan.changes), sum(1 for c in plan.changes if c.stub),
        sum(len(c.container.images) - max(len(c.images), 1 if c.stub else 0) for c in plan.changes),
        len(new) - compiled, compiled, sum(image.shared for image in new), plan.sections, plan.saved,
    )  # fmt: skip


def _refusal(source: OpenFile, elf: elfs.Elf | None, rules: Rules) -> str:
    """Why a file must stay as it is; empty: it need not."""
    if not elf:
        return "no ELF64 library"
    has_code = bool(device_sections(elf))
    if not has_code and rules.keep_symbols:
        return "no device code"
    if elf.type == elfs.ET_REL:
        return "an object file: nvprune slims those" if has_code else "an object file: a linker reads it"
    if any(load.align & (load.align - 1) for load in elf.loads):
        return "a segment's alignment is no power of two"
    if extra := elfs.appended(source, elf):
        return f"signed, or with other data appended: {extra} bytes behind its last section"
    with suppress(OSError):  # file systems without extended attributes
        if not _SIGNATURES.isdisjoint(os.listxattr(source.descriptor)):
            return "signed: the kernel would refuse it changed"
    return ""


def _unserved(source: OpenFile, elf: elfs.Elf, devices: Sequence[Capability]) -> tuple[str, ...]:
    """The devices for which no image in the device sections runs; mostly known after one container."""
    left = list(dict.fromkeys(devices))
    for section in device_sections(elf):
        for container in containers_in(source, section):
            if not all(image.known for image in container.images):
                return ()  # nobody knows what they run on
            code = [image for image in container.images if not is_stub(source, image)]
            images = [(kind, image.target) for image in code if (kind := image.kind)]
            left = [device for device in left if choose(images, device) is None]
            if not left:
                return ()
    return tuple(device.sm for device in left)
