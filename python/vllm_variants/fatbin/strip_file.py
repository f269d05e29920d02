"""Strip one file: written aside, proven, and renamed over the old name, as slimming does it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import strip, strip_proof
from vllm_variants.fatbin.source import OpenFile, opened
from vllm_variants.fatbin.writing import same_metadata, write_pieces
from vllm_variants.system import atomic


@dataclass(frozen=True)
class StripReport:
    """What stripping did to one file; sizes in bytes. `kept` says why a file was left as it was.

    `sections` are the names of those that went, `between` is what went beside them: pages that no
    segment maps and no section describes.
    """

    path: str
    before: int
    after: int
    sections: tuple[str, ...] = ()
    between: int = 0
    kept: str = ""

    @property
    def changed(self) -> bool:
        return not self.kept

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def strip_file(path: Path, *, to: Path | None = None) -> StripReport:
    """Strip one ELF file, in place or `to` another path.

    A file with nothing to drop is not touched, and nothing is written then. Raises `Malformed`,
    `Wrong` (the proof failed) or `OSError`; the old file is whole then.
    """
    with opened(path) as source:
        elf = elfs.parse(source) if elfs.is_elf64(source) else None
        if refusal := _refusal(source, elf):
            return StripReport(str(path), source.size, source.size, kept=refusal)
        assert elf
        unread = strip.unread_sections(source, elf)
        stripped = strip.lay_out(elf, source.at(0, elfs.HEADER.size), (), unread)
        if stripped.layout.size >= source.size:
            return StripReport(str(path), source.size, source.size, kept="nothing to drop")
        with atomic.new_file(to or path) as new:
            write_pieces(
                source.descriptor, strip.pieces(source, stripped), new.descriptor, stripped.layout.size
            )
            same_metadata(source.descriptor, new.descriptor)
            strip_proof.verify(source, new.path, unread)
            new.publish(durable=False)
        names = tuple(elf.sections[index].name for index in sorted(unread))
        between = source.size - stripped.layout.size - sum(elf.sections[index].size for index in unread)
        return StripReport(str(path), source.size, stripped.layout.size, names, max(between, 0))


def _refusal(source: OpenFile, elf: elfs.Elf | None) -> str:
    if not elf:
        return "no ELF64 file"
    with suppress(OSError):  # file systems without extended attributes
        if "security.ima" in os.listxattr(source.descriptor):
            return "signed: the kernel would refuse it changed"
    return strip.refusal(source, elf)
