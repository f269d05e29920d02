"""Hold the audit against NVIDIA's own reader of fat binaries, on every library of a tree.

    python bench/judge.py PATH [--slim SM]

`PATH` is whatever `audit` takes that is a folder. For each library that it finds the images per target
are compared with `cuobjdump --all-fatbin --list-elf` and `--list-ptx` (from the wheel
`nvidia-cuda-cuobjdump`; without `--all-fatbin` it leaves out relocatable code where there is executable
code), and no library may have code that the audit does not list. With `--slim` each library is slimmed
aside, and cuobjdump must list exactly what was to be kept, stubs included. Prints the share that agrees.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path

from vllm_variants.audit.targets import identify
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.container import Container
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.source import opened
from vllm_variants.model.capability import Capability, Kind

CUOBJDUMP = next(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/cuobjdump"), None)
Count = Counter[tuple[Kind, str]]


def audited(root: Path) -> dict[str, Count]:
    """What the audit lists of every library in a tree, stubs too, by path."""
    found = identify.read(root, fresh=True)
    for library in found.libraries:
        if library.problem:
            sys.exit(f"{library.path}: {library.problem}")
    return {
        library.path: images(held.container for held in library.containers) for library in found.libraries
    }


def ours(path: Path) -> Count:
    """The same of one library."""
    with opened(path) as source:
        elf = elfs.parse(source)
        return images(c for section in device_sections(elf) for c in containers_in(source, section))


def images(containers: Iterable[Container]) -> Count:
    """Images per kind and target; `f` is left out, since cuobjdump writes 10.0f as sm_100."""
    return Counter((i.kind, i.target.sm.rstrip("f")) for c in containers for i in c.images if i.kind)


def theirs(path: Path) -> Count | str:
    """What cuobjdump lists of a library; a sentence of its own where it refuses it."""
    found: Count = Counter()
    for kind, option in ((Kind.CUBIN, "--list-elf"), (Kind.PTX, "--list-ptx")):
        told = subprocess.run(
            [str(CUOBJDUMP), "--all-fatbin", option, str(path)], capture_output=True, text=True, check=False
        )
        if told.returncode and "does not contain device code" not in told.stderr + told.stdout:
            return told.stderr.strip()
        found.update((kind, word) for word in re.findall(r"\.(sm_\d+a?)\.(?:cubin|ptx)", told.stdout))
    return found


def libraries(root: Path) -> Iterator[Path]:
    """Every ELF file of a tree, once, that has a section for device code."""
    seen = set()
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_ino in seen:
            continue
        seen.add(path.stat().st_ino)
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        with opened(path) as source:
            if elfs.is_elf64(source) and device_sections(elfs.parse(source)):
                yield path


def compare(mine: Count, path: Path, name: str, note: str = "") -> bool:
    """Print whether both list the same images of a library."""
    official = theirs(path)
    if isinstance(official, str):
        print(f"refused {sum(mine.values()):6} images  {name} {note} {official}", flush=True)
        return False
    same = mine == official
    print(f"{'agree' if same else 'DIFFER':7} {sum(mine.values()):6} images  {name} {note}", flush=True)
    if not same:
        print(f"        only here {mine - official}, only there {official - mine}")
    return same


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("root", type=Path)
    options.add_argument("--slim", metavar="SM", type=Capability.parse)
    given = options.parse_args()
    if not CUOBJDUMP:
        sys.exit("cuobjdump is not installed: pip install nvidia-cuda-cuobjdump")
    listed, root = audited(given.root), given.root.resolve()
    agree = total = images_listed = 0
    for path in libraries(root):
        name = str(path.relative_to(root))
        mine = listed.get(name, Counter())
        total, images_listed = total + 1, images_listed + sum(mine.values())
        agree += compare(mine, path, name)
        if given.slim:
            with tempfile.TemporaryDirectory() as folder:
                new = Path(folder, path.name)
                if slim_file(path, [given.slim], to=new).changed:
                    total += 1
                    agree += compare(ours(new), new, name, f"slimmed to {given.slim.sm}")
    print(f"{agree} of {total} agree, {images_listed} images: ratio {agree / max(total, 1):.3f}")


if __name__ == "__main__":
    main()
