"""What slimming leaves of a tree, for each device: computed with the layout that would be written.

    python bench/sizes.py TREE [SM ...]

Nothing is written: each library is planned and laid out for each device, and its new size is what
the writer would give it. Prints one row a device, and the ratio to the unslimmed tree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin import layout
from vllm_variants.fatbin.planning import MOST_HOLES, SMALLEST_HOLE
from vllm_variants.fatbin.rewrite import (
    Rewrite,
    device_sections,
    resource_rewrites,
    resource_sections,
    rewrites,
)
from vllm_variants.fatbin.source import OpenFile, opened
from vllm_variants.fatbin.tree import regular_files
from vllm_variants.model.capability import Capability

ALL = ["7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]


@dataclass
class Saved:
    """Bytes saved: by the two code sections, and more by `.cask_resource`."""

    code: int = 0
    resources: int = 0


def saved(source: OpenFile, elf: elfs.Elf, changes: Sequence[Rewrite]) -> int:
    ordered = sorted(changes, key=lambda change: change.container.offset)
    holes = layout.holes_in(elf, [change.dead for change in ordered], SMALLEST_HOLE, MOST_HOLES)
    if not holes:
        return 0
    return source.size - layout.lay_out(elf, source.at(0, elfs.HEADER.size), holes).size


def measure(path: str, devices: Sequence[Capability], totals: dict[Capability, Saved]) -> None:
    with opened(Path(path)) as source:
        if not elfs.is_elf64(source):
            return
        elf = elfs.parse(source)
        sections, resources = device_sections(elf), resource_sections(elf)
        for device in devices if sections else ():
            code = [c for s in sections for c in rewrites(source, s, [device]) if c.changed]
            more = [c for s in resources for c in resource_rewrites(source, s, [device])]
            first, both = saved(source, elf, code), saved(source, elf, [*code, *more])
            totals[device].code += first
            totals[device].resources += both - first


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", metavar="TREE", help="an installed tree that is not slimmed")
    parser.add_argument("devices", metavar="SM", nargs="*", default=ALL, help="all variants' if absent")
    arguments = parser.parse_args()
    root, devices = arguments.root, [Capability.parse(text) for text in arguments.devices]
    totals = {device: Saved() for device in devices}
    files = regular_files(Path(root))
    for size, names in files.values():
        if size >= SMALLEST_HOLE:
            measure(names[0], devices, totals)
    whole = sum(size for size, _ in files.values())
    print(f"{root}: {whole / 1e9:.2f} GB unslimmed")
    print("device  code sections only     with .cask_resource")
    for device, cut in totals.items():
        code, both = whole - cut.code, whole - cut.code - cut.resources
        print(
            f"{device.sm:6}  {code / 1e9:.2f} GB ratio {code / whole:.3f}  "
            f"{both / 1e9:.2f} GB ratio {both / whole:.3f}"
        )


if __name__ == "__main__":
    main()
