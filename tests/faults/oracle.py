"""What one execution of the fuzzer asks: parse, audit, slim, proof, and a judge that trusts none of them.

The judge reads the slimmed file with a few lines of its own, as a loader does: every address outside
of the containers that lost images has the byte it had, segments can be mapped, alignments hold.
Containers are what the plan says, slimming again changes nothing, and whatever ran before runs after.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lz4.block
import zstandard
from shapes import PAGES

from vllm_variants.audit import collect
from vllm_variants.audit.library import LibraryAudit, audit_library
from vllm_variants.errors import Error
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import library, planning
from vllm_variants.fatbin.codecs import Codec
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.plan import kept_images
from vllm_variants.fatbin.proof import Wrong
from vllm_variants.fatbin.rewrite import DEVICE_SECTIONS, RESOURCE_SECTIONS, containers_in
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import Malformed, opened
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.model.capability import Capability, Fit

_WORDS = ["7.0", "7.2", "7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"]
_DEVICES = [Capability.parse(word) for word in _WORDS]
HOLES = (0x1000, 0x1000, 0x1000, 0x1000, planning.SMALLEST_HOLE)
"""Small inputs have small holes: most executions cut them too."""
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")


class Defect(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Asked:
    """How an input is slimmed. `whole`: it is valid, so nothing may refuse it."""

    devices: tuple[Capability, ...]
    keep_ptx: bool
    resources: bool
    hole: int
    whole: bool
    compress: str = "none"
    keep_symbols: bool = True

    @property
    def rules(self) -> Rules:
        """The slimmer's."""
        return Rules(self.keep_ptx, self.resources, Codec(self.compress), self.keep_symbols)

    @classmethod
    def drawn(cls, chance: random.Random, whole: bool) -> Asked:
        """Chosen at random."""
        devices = tuple(chance.sample(_DEVICES, chance.choice((1, 1, 1, 2, 3))))
        keep_ptx, resources, hole = chance.random() < 0.2, chance.random() < 0.8, chance.choice(HOLES)
        compress, keep_symbols = chance.choice(("none", "lz4", "zstd")), chance.random() < 0.4
        return cls(devices, keep_ptx, resources, hole, whole, compress, keep_symbols)

    def as_dict(self) -> dict[str, object]:
        """As JSON, to repeat it."""
        return {**asdict(self), "devices": [str(device) for device in self.devices]}

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Asked:
        """What `as_dict` wrote."""
        return cls(**{**facts, "devices": tuple(Capability.parse(text) for text in facts["devices"])})


@dataclass(frozen=True)
class Outcome:
    """What became of an input: a class to count, a finer signature that tells new behaviour, new bytes."""

    kind: str
    signature: str
    new: bytes | None = None


def examine(data: bytes, asked: Asked, folder: Path) -> Outcome:
    """Audit and slim `data`, judge the result; raises `Defect`, or what else escapes."""
    planning.SMALLEST_HOLE = asked.hole
    path, new = folder / "input.so", folder / "new.so"
    path.write_bytes(data)
    device = asked.devices[0]
    with opened(path) as source:
        audit = audit_library(source, "input.so", device)
    if audit and audit.problem:
        _told(audit.problem, "input.so")
    try:
        report = library.slim_file(path, asked.devices, asked.rules, to=new)
    except Error as error:
        return _refused(error, asked, audit)
    if not report.changed:
        if new.exists():
            raise Defect("nothing was changed, and there is a new file")
        if audit and audit.problem and report.kept == "nothing to drop":
            raise Defect(f"slimming sees no problem where the audit does: {audit.problem}")
        kept = report.kept.partition(":")[0]
        return Outcome("kept", f"kept {kept} {_shape(audit)}")
    slimmed = new.read_bytes()
    judge(data, slimmed, path, new, asked)
    _audited(audit, new, asked)
    again = library.slim_file(new, asked.devices, asked.rules, to=folder / "again.so")
    if again.changed:
        raise Defect(
            f"slimming again drops {again.dropped_images} more images, {again.before - again.after} bytes"
        )
    new.unlink()
    if len(list(folder.iterdir())) != 1:
        raise Defect(f"files were left over: {sorted(p.name for p in folder.iterdir())}")
    return Outcome("slimmed", f"slimmed {report.stubs:x} {_shape(audit)}", slimmed)


def examine_wheel(data: bytes, asked: Asked, folder: Path, members: Sequence[bytes]) -> Outcome:
    """Audit a wheel; a whole one says of each member what the library alone says."""
    path = folder / "input.whl"
    path.write_bytes(data)
    try:
        found = collect([path], asked.devices[0])
    except Error as error:
        if asked.whole:
            raise Defect(f"a whole wheel was refused: {error.message}") from error
        return Outcome("wheel refused", f"wheel {_class_of(error.message)}")
    finally:
        path.unlink()
    if asked.whole:
        alone = []
        for number, member in enumerate(members):
            (folder / "input.so").write_bytes(member)
            with opened(folder / "input.so") as source:
                audit = audit_library(source, f"package/lib{number}.so", asked.devices[0])
            if audit and audit.has_device_code:
                alone.append(audit.as_dict())
        if [each.as_dict() for each in found] != alone:
            raise Defect("the audit of a wheel is not that of its members")
    return Outcome("wheel audited", f"wheel {' '.join(_shape(each) for each in found)}")


def _refused(error: Error, asked: Asked, audit: LibraryAudit | None) -> Outcome:
    if not error.message:
        raise Defect("an error without a word") from error
    if asked.whole:
        raise Defect(f"a whole library was refused: {error.message}") from error
    kind = (
        "not proven"
        if isinstance(error, Wrong)
        else "malformed"
        if isinstance(error, Malformed)
        else "refused"
    )
    if kind == "malformed":
        _told(error.message, "input.so")
    return Outcome(kind, f"{kind} {_class_of(error.message)} {_shape(audit)}")


def _told(message: str, name: str) -> None:
    if "at offset 0x" not in message or name not in message:
        raise Defect(f"a problem without its file or place: {message}")


def _class_of(message: str) -> str:
    """A message without names and numbers: one for each way to be wrong."""
    rest = message.partition(": ")[2] or message
    return "".join(letter for letter in rest if not letter.isdigit())[:60]


def _shape(audit: LibraryAudit | None) -> str:
    """A library's facts, coarsely: a new shape is worth keeping."""
    if audit is None:
        return "no library"
    many = (
        audit.containers,
        len(audit.images),
        audit.stubs,
        len(audit.unknown),
        len(audit.jit),
        len(audit.scattered),
    )
    fits = "".join(each.value[0] for each in Fit if audit.fits[each])
    sizes = ".".join(str(each.bit_length()) for each in many)
    return f"{audit.machine} {sizes} {fits} {_class_of(audit.problem)}"


def _audited(before: LibraryAudit | None, new: Path, asked: Asked) -> None:
    """Whatever could run before can after, and nothing foreign came in."""
    with opened(new) as source:
        after = audit_library(source, "new.so", asked.devices[0])
    if before is None or after is None:
        raise Defect("a library was slimmed that the audit does not know")
    if after.problem:
        raise Defect(f"the audit finds a slimmed library broken: {after.problem}")
    # In spoilt libraries a stub may stand beside other images, and then audit and driver disagree.
    for each in (Fit.NATIVE, Fit.SAME_MAJOR, Fit.FAMILY, Fit.JIT) if asked.whole else ():
        if before.fits[each] != after.fits[each]:
            raise Defect(f"{before.fits[each]} containers were {each}, now {after.fits[each]}")
    if after.containers != before.containers or after.foreign > before.foreign:
        raise Defect("containers came or went, or foreign bytes came in")


# ── the judge ────────────────────────────────────────────────────────────────────────────────


def judge(old: bytes, new: bytes, old_path: Path, new_path: Path, asked: Asked) -> None:
    """Raise `Defect` unless `new` is `old` without what the plan drops, to a loader's eyes."""
    edits = _containers(old_path, new_path, asked, _loads(old)) if _dropped(old_path, new_path, asked) else []
    _sections(old, new, asked)
    if not asked.keep_symbols:  # the program headers say other offsets, where they lie in memory
        table, size = int.from_bytes(old[32:40], "little"), 56 * int.from_bytes(old[56:58], "little")
        edits += [
            (table - offset + address, table + size - offset + address)
            for _, offset, address, length, _, _ in _loads(old)
            if offset <= table < offset + length
        ]
    page = PAGES[int.from_bytes(old[18:20], "little")]
    _mappable(old, new, page)
    _memory(old, new, edits)


def _dropped(old_path: Path, new_path: Path, asked: Asked) -> bool:
    """Whether any container changed: where that frees no page, symbols alone may have gone."""
    if asked.keep_symbols:
        return True
    names = (*DEVICE_SECTIONS, *RESOURCE_SECTIONS)
    with opened(old_path) as old, opened(new_path) as new:
        held = [
            [
                [source.at(image.offset, image.size) for image in found.images]
                for section in elfs.parse(source).sections
                if section.name in names and section.file_size
                for found in containers_in(source, section)
            ]
            for source in (old, new)
        ]
    return held[0] != held[1]


def _containers(
    old_path: Path, new_path: Path, asked: Asked, loads: Sequence[tuple[int, ...]]
) -> list[tuple[int, int]]:
    """Compare every container with the plan; the address ranges in which bytes may differ."""
    edits = []
    with opened(old_path) as source, opened(new_path) as slimmed:
        old_elf, new_elf = elfs.parse(source), elfs.parse(slimmed)
        for before, after in zip(old_elf.sections, new_elf.sections, strict=True):
            if before.name not in (*DEVICE_SECTIONS, *RESOURCE_SECTIONS) or not before.file_size:
                continue
            if before.name in RESOURCE_SECTIONS and not asked.resources:
                continue
            pairs = [list(containers_in(source, before)), list(containers_in(slimmed, after))]
            if len(pairs[0]) != len(pairs[1]):
                raise Defect(f"{len(pairs[0])} containers in {before.name}, then {len(pairs[1])}")
            whole = before.name in DEVICE_SECTIONS
            loaded = any(offset <= before.offset < offset + size for _, offset, _, size, _, _ in loads)
            for number, (was, now) in enumerate(zip(*pairs, strict=True)):
                kept = kept_images(was, asked.devices, asked.keep_ptx and whole)
                if whole:
                    following = pairs[0][number + 1].offset if number + 1 < len(pairs[0]) else before.end
                else:
                    kept = list(was.images) if kept else []
                    following = was.end
                if not loaded:  # nothing of it has an address, so nothing of it may go
                    kept = list(was.images)
                if _changed(source, was, slimmed, now, kept, asked):
                    edits += [
                        (was.offset - offset + address, following - offset + address)
                        for _, offset, address, size, _, _ in loads
                        if offset <= was.offset < offset + size
                    ]
    return edits


def _changed(
    source: elfs.Source,
    was: Container,
    slimmed: elfs.Source,
    now: Container,
    kept: Sequence[object],
    asked: Asked,
) -> bool:
    """Whether a container changed, as it should: the kept images are what they were, however stored."""
    images = [image for image in was.images if image in kept] if kept else []
    if len(images) == len(was.images):
        expected = list(was.images)
    elif images:
        expected = images
    elif len(now.images) == 1 and is_stub(slimmed, now.images[0]):
        stub = now.images[0]
        if not any((i.code, i.architecture) == (stub.code, stub.architecture) for i in was.images):
            raise Defect(f"the stub at {was.offset:#x} is of a target that was not there")
        return True
    else:
        expected = list(was.images)
    if [(i.code, i.architecture) for i in expected] != [(i.code, i.architecture) for i in now.images]:
        raise Defect(f"the container at {was.offset:#x} does not hold what the plan keeps")
    same = len(expected) == len(was.images)
    for image, found in zip(expected, now.images, strict=True):
        old, new = source.at(image.offset, image.size), slimmed.at(found.offset, found.size)
        if old != new:
            same = False
            if (
                asked.compress == "none"
                or len(new) >= len(old)
                or _described(old) != _described(new)
                or _raw(old) != _raw(new)
            ):
                raise Defect(f"an image of the container at {was.offset:#x} changed")
    return not same


_COMPRESSED = {0x2000: "lz4", 0x8000: "zstd"}


def _described(image: bytes) -> bytes:
    """An image's header without how its payload is stored: sizes and two flags."""
    header = bytearray(image[: int.from_bytes(image[4:8], "little")])
    flags = int.from_bytes(header[40:48], "little")
    header[8:20], header[56:64] = bytes(12), bytes(8)
    header[40:48] = (flags & ~0xA000).to_bytes(8, "little")
    return bytes(header)


def _raw(image: bytes) -> bytes:
    """An image's payload as a driver has it, by the libraries of the codecs alone."""
    start, size = int.from_bytes(image[4:8], "little"), int.from_bytes(image[16:20], "little")
    payload, plain = image[start:], int.from_bytes(image[56:64], "little")
    codec = _COMPRESSED.get(int.from_bytes(image[40:48], "little") & 0xA000)
    if codec is None:
        return payload
    if any(payload[size:]) or not 0 <= len(payload) - size < 8:
        raise Defect("a payload is not padded with zeros to eight bytes")
    if codec == "lz4":
        return bytes(lz4.block.decompress(payload[:size], uncompressed_size=plain))
    raw = zstandard.ZstdDecompressor().decompress(payload[:size], max_output_size=plain)
    if len(raw) != plain:
        raise Defect("a zstd frame does not hold what its header says")
    return raw


def _headers(data: bytes) -> list[tuple[int, ...]]:
    at, count = int.from_bytes(data[40:48], "little"), int.from_bytes(data[60:62], "little")
    return [_SECTION.unpack_from(data, at + 64 * number) for number in range(count)] if at else []


def _sections(old: bytes, new: bytes, asked: Asked) -> None:
    """Sections keep their numbers; one goes only where it has no address and may, whole and unreferenced."""
    gone = set()
    were, are = _headers(old), _headers(new)
    if len(were) != len(are):
        raise Defect(f"{len(were)} sections became {len(are)}")
    index = int.from_bytes(old[62:64], "little")
    index = were[0][6] if index == _PN_XNUM and were else index
    names = were[index] if were else ()
    for number, (was, now) in enumerate(zip(were, are, strict=True)):
        if any(was) and not any(now):
            gone.add(number)
            end = old.find(b"\0", names[4] + was[0])
            name = old[names[4] + was[0] : end]
            if asked.keep_symbols or was[2] & 2 or number == index:
                raise Defect(f"section {number} may not go")
            if was[1] not in _SYMBOLS and not name.startswith(_DEBUG):
                raise Defect(f"section {number} is neither symbols nor debug information")
        elif was[2] & 2 or was[1] == 8 or _is_loaded(was, old):
            continue  # those are judged by their addresses
        elif old[was[4] : was[4] + was[5]] != new[now[4] : now[4] + now[5]]:
            raise Defect(f"section {number}, which is not loaded, changed")
    if any(now[6] in gone for number, now in enumerate(are) if number not in gone):
        raise Defect("a section that stays refers to one that went")


_SYMBOLS = (2, 3, 4, 9, 18)
_PN_XNUM = 0xFFFF
_DEBUG = (b".debug", b".zdebug", b".gnu", b".stab", b".line", b".gdb_index")


def _is_loaded(section: Sequence[int], data: bytes) -> bool:
    start, end = section[4], section[4] + section[5]
    return any(offset < end and start < offset + size for _, offset, _, size, _, _ in _loads(data))


def _loads(data: bytes) -> list[tuple[int, int, int, int, int, int]]:
    """Every PT_LOAD: flags, offset, address, bytes in the file, bytes in memory, alignment."""
    at, count = int.from_bytes(data[32:40], "little"), int.from_bytes(data[56:58], "little")
    if count == _PN_XNUM:  # the real one is in the first section header
        (count,) = struct.unpack_from("<I", data, int.from_bytes(data[40:48], "little") + 44)
    found = []
    for number in range(count):
        kind, flags, offset, address, _, size, memory, align = _SEGMENT.unpack_from(data, at + 56 * number)
        if kind == 1:
            found.append((flags, offset, address, size, memory, align))
    return found


def _faults(data: bytes, page: int) -> set[str]:
    """What a loader would object to, or map wrongly."""
    found, loads = set(), _loads(data)
    for _, offset, address, size, memory, align in loads:
        if align & (align - 1) or (address - offset) % max(align, 1) or (address - offset) % page:
            found.add("an address and its offset differ modulo the alignment")
        if size > memory or (size and offset + size > len(data)):
            found.add("a segment is longer than the file or its memory")
        for each in {page, 0x1000}:  # a kernel's pages may be smaller than those that segments begin on
            if not size and address % each and offset // each * each >= len(data):
                found.add(f"a segment without bytes has no page of {each} bytes to begin in")
    for (_, _, address, _, memory, _), (_, _, following, _, _, _) in pairwise(loads):
        if (address + max(memory, 1) - 1) // page >= following // page:
            found.add("two segments are in one page, or out of order")
    at, count = int.from_bytes(data[40:48], "little"), int.from_bytes(data[60:62], "little")
    largest = max((load[5] for load in loads), default=0)
    for number in range(count):
        fields = _SECTION.unpack_from(data, at + 64 * number)
        power = fields[8] & (fields[8] - 1) == 0
        if fields[2] & 2 and power and fields[8] > max(largest, page):
            found.add("data is aligned more than any segment")
    return found


def _mappable(old: bytes, new: bytes, page: int) -> None:
    if more := _faults(new, page) - _faults(old, page):
        raise Defect(f"a loader would object: {', '.join(sorted(more))}")


def _memory(old: bytes, new: bytes, edits: Sequence[tuple[int, int]]) -> None:
    """Every address that had bytes has them still, outside of `edits` and of the ELF header."""
    holes = sorted([*edits, (_loads(old)[0][2], _loads(old)[0][2] + 64)])
    now = _loads(new)
    for _, offset, address, size, memory, _ in _loads(old):
        for start, end in _without(address, address + size, holes):
            at = start
            while at < end:
                load = next((each for each in now if each[2] <= at < each[2] + each[3]), None)
                if load is None:
                    raise Defect(f"the bytes at address {at:#x} are gone")
                until = min(end, load[2] + load[3])
                mine = old[offset + at - address : offset + until - address]
                if mine != new[load[1] + at - load[2] : load[1] + until - load[2]]:
                    raise Defect(f"bytes between addresses {at:#x} and {until:#x} changed")
                at = until
        last = address + memory
        if memory > size and not any(each[2] <= last - 1 < each[2] + each[4] for each in now):
            raise Defect(f"memory without bytes up to {last:#x} is gone")


def _without(start: int, end: int, holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of [start, end) outside of `holes`, which are in order."""
    parts = []
    for first, last in holes:
        if last <= start or first >= end:
            continue
        if start < first:
            parts.append((start, first))
        start = max(start, last)
    return [*parts, (start, end)] if start < end else parts
