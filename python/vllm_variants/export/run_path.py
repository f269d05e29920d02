"""Where a library looks for others: the run path in its dynamic section, made relative to the file itself.

It is changed in place, as chrpath does: the new path is no longer than the old one, so that no byte of the
file moves. A file that has none is given one by patchelf, where that is there.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.errors import MissingError
from vllm_variants.fatbin import elf
from vllm_variants.fatbin.source import opened
from vllm_variants.system import process

# System V ABI, "Dynamic Section"
_PT_DYNAMIC = 2
_DT_NULL, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 5, 15, 29
_ENTRY = struct.Struct("<qQ")


@dataclass(frozen=True)
class RunPath:
    """A file's run path: its text, and where in the file its tag and its text lie."""

    text: str
    tag_at: int
    text_at: int


def read(path: Path) -> RunPath | None:
    """The run path of a file; None for one without, or for what is no ELF file of 64 bits."""
    with opened(path) as source:
        if not elf.is_elf64(source):
            return None
        headers = elf.parse(source)
        dynamic = next((s for s in headers.segments if s.type == _PT_DYNAMIC), None)
        if dynamic is None:
            return None
        entries = {
            tag: (dynamic.offset + index * _ENTRY.size, value)
            for index, (tag, value) in enumerate(
                _ENTRY.iter_unpack(source.at(dynamic.offset, dynamic.file_size // 16 * 16))
            )
        }
        found = entries.get(_DT_RUNPATH) or entries.get(_DT_RPATH)
        if not found or _DT_STRTAB not in entries:
            return None
        address = entries[_DT_STRTAB][1] + found[1]
        load = next(s for s in headers.loads if s.address <= address < s.address + s.file_size)
        at = address - load.address + load.offset
        text = source.at(at, min(4096, source.size - at)).split(b"\0", 1)[0]
        return RunPath(text.decode("utf-8", "surrogateescape"), found[0], at)


def make_relative(path: Path, new: str) -> None:
    """Have the file at `path` look in `new` (`$ORIGIN/../lib`) first, and all that it loads as well.

    The tag becomes DT_RPATH, which holds for what is loaded later too (ld.so(8)). Raises `MissingError` where
    there is no room for it, and no patchelf.
    """
    old, encoded = read(path), new.encode()
    if old and old.text == new:
        return
    if old and len(old.text.encode("utf-8", "surrogateescape")) >= len(encoded):
        with path.open("r+b") as file:
            file.seek(old.text_at)
            file.write(encoded.ljust(len(old.text.encode("utf-8", "surrogateescape")), b"\0"))
            file.seek(old.tag_at)
            file.write(struct.pack("<q", _DT_RPATH))
        return
    patchelf = shutil.which("patchelf")
    if not patchelf or process.capture([patchelf, "--force-rpath", "--set-rpath", new, path]).status:
        raise MissingError(
            f"{path.name} has no run path that can be made relative",
            hint="take a Python made for that: `uv python install 3.12`, or --python; or install patchelf",
        )
