"""Every library of a result opened, every package with native code imported, against the published wheels.

    python bench/dlopen.py RESULT [--work DIR] [--jobs N]

The release's wheels are installed as published (hard links into uv's cache). In both trees each shared
library is opened (`dlopen`, all symbols bound) in a process of its own, and each package that holds a
library is imported, one after the other in one process; what does not load by itself is opened once more in a
process that has torch. Both must end alike in both trees: what loads
loads, and what fails, for want of a driver say, fails with the same words. The result has neither uv's
cache nor a home. Prints a JSON object: counts, seconds, and each difference; ends with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path
import published

from vllm_variants.builders.wheels import launchers
from vllm_variants.fatbin import elf as elfs
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.tree import elf_files
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix
from vllm_variants.model.results import Result, read

_OPEN = """
import ctypes, os, sys
root = sys.argv[1]
for name in sys.stdin.read().splitlines():
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            ctypes.CDLL(os.path.join(root, name))
            said = "loads"
        except OSError as error:
            said = str(error).replace(root, "")
        os.write(into, said.encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    print(name, said.replace("\\n", " ") or f"ended with status {status}", sep="\\t", flush=True)
"""
_OPEN_BESIDE_TORCH = "import torch\n" + _OPEN
_IMPORT = """
import importlib, os, sys
root, talk = sys.argv[1], os.dup(1)
os.dup2(2, 1)
for name in sys.stdin.read().splitlines():
    try:
        importlib.import_module(name)
        said = "imports"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".replace(root, "").replace("\\n", " ")
    os.write(talk, f"{name}\\t{said}\\n".encode())
os._exit(0)
"""


def libraries(tree: Path) -> list[str]:
    """One name of each shared library below `tree`, relative to it."""
    found = []
    for path in elf_files(tree):
        with opened(path) as source:
            if elfs.is_elf64(source) and ".so" in path.name and elfs.parse(source).type == elfs.ET_DYN:
                found.append(str(path.relative_to(tree)))
    return sorted(found)


def packages(site: Path, names: Sequence[str]) -> list[str]:
    """The top-level modules below `site` that hold one of these libraries."""
    tops = {Path(name).relative_to(site).parts[0] for name in names if Path(name).is_relative_to(site)}
    modules = {top.partition(".")[0] for top in tops if (site / top).is_file()}
    modules |= {top for top in tops if (site / top / "__init__.py").is_file()}
    return sorted(modules)


def outcomes(tree: Path, program: str, names: Sequence[str], jobs: int, home: Path) -> dict[str, str]:
    """What a program says of each name, by `jobs` processes of the tree's own Python."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "UV_CACHE_DIR": "/nonexistent"}
    env |= {"TMPDIR": str(home), "CUDA_VISIBLE_DEVICES": ""}

    def run(share: Sequence[str]) -> str:
        command = [str(tree / "bin" / "python"), "-c", program, str(tree)]
        done = subprocess.run(
            command, input="\n".join(share), env=env, cwd=home, capture_output=True, text=True, check=False
        )
        return done.stdout

    with ThreadPoolExecutor(jobs) as pool:
        texts = pool.map(run, [names[number::jobs] for number in range(jobs)])
    found = dict(line.split("\t", 1) for text in texts for line in text.splitlines())
    return {name: found.get(name, "nothing: its process ended") for name in names}


def compare(result: Result, wheels: Path, home: Path, jobs: int) -> dict[str, object]:
    """Open and import all of `result`, and the same names of `wheels`, the published tree."""
    site = result.path / "lib" / f"python{result.manifest.facts['stack']['python']}" / "site-packages"
    names = libraries(result.path)
    modules = packages(site, [str(result.path / name) for name in names])
    facts: dict[str, object] = {"libraries": len(names), "packages": len(modules)}
    differences: dict[str, list[str]] = {}
    rounds = [("load", _OPEN, names, jobs), ("load_beside_torch", _OPEN_BESIDE_TORCH, [], 1)]
    for what, program, these, each in (*rounds, ("import", _IMPORT, modules, 1)):
        these = these or list(facts["fail_to_load"])  # type: ignore[call-overload]
        started = time.monotonic()
        run = partial(outcomes, program=program, names=these, jobs=each, home=home)
        with ThreadPoolExecutor(2) as pool:
            mine, theirs = pool.map(run, (result.path, wheels))
        facts[what] = sum(said in ("loads", "imports") for said in mine.values())
        facts[f"{what}_seconds"] = round(time.monotonic() - started, 1)
        facts[f"fail_to_{what}"] = {n: s for n, s in mine.items() if s not in ("loads", "imports")}
        differences |= {f"{what} {n}": [mine[n], theirs[n]] for n in these if mine[n] != theirs[n]}
    return facts | {"differences": differences}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("--work", type=Path, help="a folder on the disk of uv's cache")
    parser.add_argument("--jobs", type=int, default=1, help="processes of each tree that open libraries")
    given = parser.parse_args()
    result = read(given.result)
    with tempfile.TemporaryDirectory(prefix="vllm-variants-dlopen.", dir=given.work) as work:
        release, home = matrix.load().release(result.manifest.release), Path(work, "home")
        home.mkdir()
        wheels = published.install(release, Path(work, "published"))
        minor = release.stack.python
        launchers.write(wheels, interpreters.find(minor).path, minor)
        facts = compare(result, wheels, home, given.jobs)
    print(json.dumps(facts, indent=1))
    sys.exit(1 if facts["differences"] else 0)


if __name__ == "__main__":
    main()
