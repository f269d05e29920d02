"""How a tree becomes layers, so that images share what is equal in them.

    Python           the same in all variants and releases of a Python version
    large libraries  one layer each: the same bytes are one blob, whichever images have them
    packages         what slimming for an SM leaves alone: the same in all variants of a release
    device code      the smaller libraries that differ by SM, and what records their hashes
    launchers        programs, manifests, licences

What changes rarely comes first. A layer has one moment, one owner and sorted names, so its digest depends on
its files alone.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from vllm_variants.export.portable import Portable
from vllm_variants.export.tree import Entry, File

MOST = 40
"""Layers of an image. Overlay file systems take 127; with fewer, pulling has less to ask for."""
LARGE = 32_000_000
"""Bytes from which on a library has a layer of its own."""


@dataclass(frozen=True)
class Layer:
    """What goes into one layer; `name` says what that is, to people."""

    name: str
    entries: tuple[Entry, ...]


def layers(portable: Portable, base: int) -> list[Layer]:
    """The layers of a tree, in their order; `base` is how many it stands on. Empty ones are left out."""
    tree = portable.tree
    device_code = _device_code(portable)
    large = [entry for entry in tree.packages if entry.size >= LARGE and not entry.path.endswith(".py")]
    large = sorted(large, key=lambda entry: (-entry.size, entry.path))[: max(0, MOST - base - 5)]
    alone = {entry.path for entry in large}
    rest = [entry for entry in tree.packages if entry.path not in alone]
    changed = _recorded_with(rest, device_code | {path for path in alone if path in device_code})
    kinds = [
        Layer(f"Python {portable.runtime.version}", tree.python),
        *(Layer(_readable(PurePosixPath(entry.path).name), (entry,)) for entry in large),
        Layer("packages", tuple(entry for entry in rest if entry.path not in changed)),
        Layer(
            f"device code for {portable.result.manifest.facts['sm']}",
            tuple(e for e in rest if e.path in changed),
        ),
        Layer("launchers and manifests", tree.launchers),
    ]
    return [layer for layer in kinds if layer.entries]


def _readable(name: str) -> str:
    """A file's name as JSON holds it, its bytes escaped where they are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _device_code(portable: Portable) -> set[str]:
    """The files that hold device code, as the build's report on slimming says."""
    try:
        report = json.loads((portable.result.path / "share" / "vllm-variants" / "slim.json").read_text())
        return {str(file["path"]) for file in report["files"] if file.get("device_code")}
    except (OSError, ValueError, KeyError, TypeError):  # not slimmed: nothing differs by SM
        return set()


def _recorded_with(entries: Sequence[Entry], device_code: set[str]) -> set[str]:
    """Those of `entries` that differ by SM: device code, and the RECORDs that have its hashes."""
    changed = {entry.path for entry in entries if entry.path in device_code}
    for entry in entries:
        if isinstance(entry, File) and entry.path.endswith(".dist-info/RECORD"):
            site = PurePosixPath(entry.path).parent.parent
            with entry.source.open(encoding="utf-8", newline="") as rows:
                if any(row and str(site / row[0]) in device_code for row in csv.reader(rows)):
                    changed.add(entry.path)
    return changed
