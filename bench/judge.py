"""Hold this project's reader of fat binaries against NVIDIA's, on every library of a tree.

    python bench/judge.py SITE-PACKAGES [--slim SM]

For each library the images per target are compared with `cuobjdump --all-fatbin --list-elf` and
`--list-ptx` (from the wheel `nvidia-cuda-cuobjdump`; without `--all-fatbin` it leaves out relocatable
code where there is executable code). With `--slim` each library is slimmed aside, and
cuobjdump must list exactly what was to be kept, stubs included. Prints the share that agrees.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path

from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.library import slim_file
from vllm_variants.fatbin.rewrite import containers_in, device_sections
from vllm_variants.fatbin.source import opened
from vllm_variants.model.capability import Capability, Kind

CUOBJDUMP = next(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/cuobjdump"), None)
Count = Counter[tuple[Kind, str]]


def ours(path: Path) -> Count:
    """Images per kind and target; `f` is left out, since cuobjdump writes 10.0f as sm_100."""
    found: Count = Counter()
    with opened(path) as source:
        elf = elfs.parse(source)
        for section in device_sections(elf):
            for container in containers_in(source, section):
                found.update((i.kind, i.target.sm.rstrip("f")) for i in container.images if i.kind)
    return found


def theirs(path: Path) -> Count:
    found: Count = Counter()
    for kind, option in ((Kind.CUBIN, "--list-elf"), (Kind.PTX, "--list-ptx")):
        told = subprocess.run(
            [str(CUOBJDUMP), "--all-fatbin", option, str(path)], capture_output=True, text=True, check=False
        )
        if told.returncode and "does not contain device code" not in told.stderr + told.stdout:
            raise SystemExit(f"cuobjdump {option} {path}: {told.stderr.strip()}")
        found.update((kind, word) for word in re.findall(r"\.(sm_\d+a?)\.(?:cubin|ptx)", told.stdout))
    return found


def libraries(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.so*")):
        if path.is_file() and not path.is_symlink():
            with opened(path) as source:
                if elfs.is_elf64(source) and device_sections(elfs.parse(source)):
                    yield path


def compare(path: Path, name: str, note: str = "") -> bool:
    mine, official = ours(path), theirs(path)
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
    agree = total = 0
    for path in libraries(given.root):
        name = str(path.relative_to(given.root))
        total += 1
        agree += compare(path, name)
        if given.slim:
            with tempfile.TemporaryDirectory() as folder:
                new = Path(folder, path.name)
                if slim_file(path, [given.slim], to=new).changed:
                    total += 1
                    agree += compare(new, name, f"slimmed to {given.slim.sm}")
    print(f"{agree} of {total} agree: ratio {agree / total:.3f}")


if __name__ == "__main__":
    main()
