"""What will become of a library: which containers change, which pages and sections go. Nothing is written.

The rules apply in an order: images are dropped or compiled, then those that stay are stored in less
room, then pages that hold nothing any more are cut, then what no segment maps. An image is stored
anew only where that frees pages, since the rest of a page takes its room all the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_variants.fatbin import layout, strip
from vllm_variants.fatbin.codecs import Encoded
from vllm_variants.fatbin.container import Image
from vllm_variants.fatbin.elf import HEADER, Elf, Section, is_program
from vllm_variants.fatbin.layout import Hole, Layout
from vllm_variants.fatbin.new_image import NewImage
from vllm_variants.fatbin.rewrite import (
    Images,
    Rewrite,
    compressed,
    device_sections,
    resource_rewrites,
    resource_sections,
    rewrites,
)
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.source import Malformed, Source
from vllm_variants.fatbin.stored import Place, StoredImages
from vllm_variants.model.capability import Capability

SMALLEST_HOLE = 0x4000
"""Bytes; smaller holes would save another 0.05 % of a result, and double the segments of some libraries."""
PROGRAM = "a program: in more segments it would not find its own headers, so its device code stays"
MOST_HOLES = 4000
"""Program headers are counted in 16 bits, and glibc keeps them on the stack while loading."""


@dataclass(frozen=True)
class FilePlan:
    """The new file: `changes` are the containers that change, by offset, `unread` the sections that go,
    by number (None: all that is unmapped stays), `sections` their names, and `saved` the bytes that
    each rule takes."""

    changes: tuple[Rewrite, ...]
    unread: frozenset[int] | None
    sections: tuple[str, ...]
    layout: Layout
    saved: Mapping[str, int]
    why: str = ""
    """Why code, or what no segment maps, stays where the rules would have it cut."""

    @property
    def new_images(self) -> list[NewImage]:
        """The images that are compiled, or stored in another way."""
        return [image for change in self.changes for image in change.images if isinstance(image, NewImage)]

    @property
    def worthwhile(self) -> bool:
        """Whether the new file is smaller, or has cubins that the old one lacks."""
        return any(self.saved.values()) or any(change.compiled for change in self.changes)


def plan_file(
    source: Source,
    elf: Elf,
    devices: Sequence[Capability],
    rules: Rules,
    compiled: Mapping[int, Images],
    stored: StoredImages,
) -> FilePlan:
    """Plan one library; without `devices` no image is dropped. Raises `Malformed`.

    `compiled` are the images of containers that got cubins of their own, by offset; `stored` may have
    images compressed already.
    """
    program = is_program(source, elf)
    before = _holes(elf, _changed(_rewrites(source, elf, devices, rules, {}))) if compiled else None
    kept = _rewrites(source, elf, devices, rules, compiled)  # also where it is not used: it may be malformed
    kept = [] if program else kept
    holes = _holes(elf, _changed(kept))
    final, final_holes = kept, holes
    if len(rules.encodings) > 1:
        final = _stored(source, elf, kept, rules, stored)
        final_holes = _holes(elf, _changed(final))
    changes = [c for c in _changed(final) if final_holes or c.compiled]
    header = source.at(0, HEADER.size)
    unread, why = _unread(source, elf, rules)
    result = layout.lay_out(elf, header, final_holes)
    symbols = 0
    if unread is not None:
        stripped = strip.lay_out(elf, header, final_holes, unread)
        if stripped.size < result.size:
            symbols, result = result.size - stripped.size, stripped
        else:
            unread = None
    saved = {
        "images": _size(holes if before is None else before),
        "native": 0 if before is None else _size(holes) - _size(before),
        "compress": _size(final_holes) - _size(holes),
        "symbols": symbols,
    }
    saved["images"] += elf.size - result.size - sum(saved.values())  # the new file's own headers
    if program and device_sections(elf):
        why = why or PROGRAM
    if result.size >= elf.size and not any(change.compiled for change in changes):
        return FilePlan((), None, (), result, dict.fromkeys(saved, 0), why)
    sections = tuple(elf.sections[index].name for index in sorted(unread or ()))
    return FilePlan(tuple(changes), unread, sections, result, saved, why)


def _unread(source: Source, elf: Elf, rules: Rules) -> tuple[frozenset[int] | None, str]:
    """The sections that go, None where nothing unmapped may go; and why not."""
    if rules.keep_symbols:
        return None, ""
    if refusal := strip.refusal(source, elf):
        return None, refusal
    return strip.unread_sections(source, elf), ""


def _rewrites(
    source: Source, elf: Elf, devices: Sequence[Capability], rules: Rules, compiled: Mapping[int, Images]
) -> list[Rewrite]:
    """The containers that can free pages, as they will be, by offset: those that are in a segment.

    The others are read all the same: a library that is malformed anywhere is left alone.
    """
    _require_apart(source, elf)
    found: list[Rewrite] = []
    for section in device_sections(elf):
        changes = list(rewrites(source, section, devices, rules.keep_ptx, compiled))
        if _is_loaded(elf, section):
            found += changes
    if rules.resources:
        for section in resource_sections(elf):
            if _is_loaded(elf, section):
                found += resource_rewrites(source, section, devices, rules.keep_ptx)
    return sorted(found, key=lambda change: change.container.offset)


def _require_apart(source: Source, elf: Elf) -> None:
    """Raise `Malformed` where two sections with device code claim the same bytes."""
    sections = sorted([*device_sections(elf), *resource_sections(elf)], key=lambda s: s.offset)
    for before, after in pairwise(sections):
        if before.end > after.offset:
            raise Malformed(source.name, after.offset, f"section {after.name} lies in {before.name}")


def _is_loaded(elf: Elf, section: Section) -> bool:
    return any(load.offset <= section.offset < load.end for load in elf.loads)


def _changed(found: Sequence[Rewrite]) -> list[Rewrite]:
    return [change for change in found if change.changed]


def _holes(elf: Elf, changes: Sequence[Rewrite]) -> list[Hole]:
    return layout.holes_in(elf, [change.dead for change in changes], SMALLEST_HOLE, MOST_HOLES)


def _stored(
    source: Source, elf: Elf, kept: Sequence[Rewrite], rules: Rules, stored: StoredImages
) -> list[Rewrite]:
    """The containers with their images stored in less room, where that frees more pages than before."""
    places = _places(elf, kept)

    def known(change: Rewrite) -> Callable[[Image], Encoded | None]:
        place = places.get(change.container.offset)
        return lambda image: place and stored.take(source, image, place, rules.encodings[-1])

    candidates = [
        compressed(source, change, rules.encodings, known(change))
        if change.dead_end - change.container.offset >= SMALLEST_HOLE and not change.stub
        else change
        for change in kept
    ]
    holes = _holes(elf, _changed(candidates))
    starts = [hole.start for hole in holes]
    return [
        candidate if _has_hole(starts, candidate) else change
        for change, candidate in zip(kept, candidates, strict=True)
    ]


def _places(elf: Elf, kept: Sequence[Rewrite]) -> dict[int, Place]:
    """Where the containers of the device sections are, by offset."""
    places: dict[int, Place] = {}
    for number, section in enumerate(device_sections(elf)):
        offsets = [c.container.offset for c in kept if section.offset <= c.container.offset < section.end]
        places.update((offset, (number, ordinal)) for ordinal, offset in enumerate(offsets))
    return places


def _has_hole(starts: Sequence[int], change: Rewrite) -> bool:
    start, end = change.dead
    index = bisect_left(starts, start)
    return index < len(starts) and starts[index] < end


def _size(holes: Sequence[Hole]) -> int:
    return sum(hole.size for hole in holes)
