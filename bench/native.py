"""What native code costs: compiling by cores, the cache, and a whole build with and without it.

    python bench/native.py [--variant sm90] [--release V] [--work DIR] [--rounds N]
                           [--subset libcusparse.so --subset-sm 80] [--at-once 1,2] [--no-builds]

1. The PTX of some libraries (`--subset`, a pattern of names; for `--subset-sm`) is compiled into an empty
   cache by as many compilers at once as `--at-once` says, each number in turn, and once more from the full
   cache: seconds by the clock and of CPU, peak memory of a compiler, PTX and cubin bytes.
2. All PTX of `--variant` is looked up in the cache that `VLLM_VARIANTS_CUBINS` names.
3. The variant is built without and with `--native`, in turns, in a store of its own, deleted at once. Refused
   where the cache lacks a cubin, since that would compile for an hour: `bench/cubins.py` fills it.

Prints a JSON object; sizes in bytes, times in seconds.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import checkout
import cubins
import published

from vllm_variants.builders.wheels import compilers
from vllm_variants.fatbin.codecs import Codec
from vllm_variants.fatbin.native import cache as caches
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.library import compile_libraries, plan_tree
from vllm_variants.fatbin.native.queue import Compiled, Job, Limits, compile_all
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.tree import elf_files
from vllm_variants.machine import memory
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability, Target
from vllm_variants.model.variants import Release


def subset(release: Release, tree: Path, device: Capability, pattern: str) -> list[Job]:
    """The compilations that libraries of these names need."""
    found = []
    for text, content in cubins.planned(release.name, tree, [device]):
        if fnmatch.fnmatch(text.wanted_by[0], f"* {pattern}* at *"):
            target = Target.parse(text.target)
            found.append(Job(text.wanted_by[0], text.size, target, text.options, partial(bytes, content)))
    return found


def compiled(jobs: Sequence[Job], compiler: Compiler, cache: Path, at_once: int) -> dict[str, Any]:
    """Compile them into a cache; the figures."""
    started = time.monotonic()
    limits = Limits(at_once, memory.available)
    outcomes = list(compile_all(jobs, compiler, Cache(cache), limits))
    made = [outcome for outcome in outcomes if isinstance(outcome, Compiled)]
    return {
        "at_once": at_once, "wall": round(time.monotonic() - started, 2),
        "cpu": round(sum(outcome.seconds for outcome in made), 2),
        "peak_bytes": max(outcome.peak for outcome in made), "jobs": len(jobs), "compiled": len(made),
        "from_cache": sum(outcome.cached for outcome in made),
        "ptx_bytes": sum(job.size for job in jobs), "cubin_bytes": sum(len(o.cubin) for o in made),
    }  # fmt: skip


def looked_up(tree: Path, device: Capability, compiler: Compiler) -> dict[str, Any]:
    """What it costs to have all cubins of a variant from the full cache, as they will be stored."""
    started, cpu = time.monotonic(), _cpu(resource.RUSAGE_SELF)
    plans = plan_tree(elf_files(tree), tree, [device])
    limits = Limits(memory.processors(), memory.available)
    libraries = list(
        compile_libraries(
            plans, compiler, Cache(caches.default_folder()), limits,
            allowed=Rules(compress=Codec.ZSTD).encodings,
        )
    )  # fmt: skip
    rows = [row for library in libraries for row in library.cubins]
    return {
        "wall": round(time.monotonic() - started, 2), "cpu": round(_cpu(resource.RUSAGE_SELF) - cpu, 2),
        "cubins": len(rows), "from_cache": sum(row.cached for row in rows),
        "ptx_stored": sum(row.ptx_stored for row in rows), "stored": sum(row.stored for row in rows),
    }  # fmt: skip


def built(short: str, release: Release, native: bool, work: Path) -> dict[str, Any]:
    """Build a variant in a store of its own; seconds, and what its manifest says."""
    folder = Path(tempfile.mkdtemp(prefix="build.", dir=work))
    command = [sys.executable, "-m", "vllm_variants", "build", short, "--release", release.name]
    command += ["--links", str(folder), *(["--native"] if native else [])]
    env = {**os.environ, "PYTHONPATH": str(checkout.ROOT / "python"), "XDG_DATA_HOME": str(folder / "data")}
    compiler = compilers.compiler(release.stack.cuda).ptxas
    env["VLLM_VARIANTS_PTXAS"] = str(compiler)
    started, cpu = time.monotonic(), _cpu(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    wall, used = time.monotonic() - started, _cpu(resource.RUSAGE_CHILDREN) - cpu
    try:
        if done.returncode:
            sys.exit(done.stdout.decode())
        (manifest,) = folder.glob("result-*/share/vllm-variants/manifest.json")
        facts = json.loads(manifest.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    steps = {step["name"]: step for step in facts["steps"]}
    return {
        "native": native, "wall": round(wall, 1), "cpu": round(used, 1), "bytes": facts["bytes"],
        "steps": {name: step.get("seconds") for name, step in steps.items()},
        "verdict": steps["audit"]["verdict"], "manifest": facts,
    }  # fmt: skip


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="sm90")
    parser.add_argument("--release", help="default: the matrix's")
    parser.add_argument("--work", type=Path, help="a folder on the disk of uv's cache")
    parser.add_argument("--rounds", type=int, default=1, help="of builds; each is one without and one with")
    parser.add_argument("--subset", default="libcusparse.so")
    parser.add_argument("--subset-sm", type=Capability.parse, default=Capability(8, 0))
    parser.add_argument("--at-once", default="1,2")
    parser.add_argument("--no-builds", action="store_true")
    parser.add_argument("--manifests", type=Path, help="a folder for the manifests of what was built")
    given = parser.parse_args()
    rows = matrix.load()
    release, variant = rows.release(given.release), rows.parse(given.variant).variant
    compiler = compilers.compiler(release.stack.cuda)
    with tempfile.TemporaryDirectory(prefix="vllm-variants-native.", dir=given.work) as work:
        tree = published.install(release, Path(work, "published"))
        jobs = subset(release, tree, given.subset_sm, given.subset)
        facts: dict[str, Any] = {"compiler": compiler.as_dict(), "variant": variant.short, "compiling": []}
        for at_once in map(int, given.at_once.split(",")) if jobs else ():
            cache = Path(work, f"cubins-{at_once}")
            facts["compiling"] += [compiled(jobs, compiler, cache, at_once) for _ in range(2)]
        missing = cubins.missing(release.name, tree, variant.capability, compiler)
        facts["missing_in_cache"] = missing
        if not missing:
            facts["full_cache"] = looked_up(tree, variant.capability, compiler)
        builds = []
        for _ in range(0 if missing or given.no_builds else given.rounds):
            builds += [built(variant.short, release, native, Path(work)) for native in (False, True)]
    for number, one in enumerate(builds):
        manifest = one.pop("manifest")
        if given.manifests:
            kind = "native" if one["native"] else "plain"
            path = given.manifests / f"{variant.short}-{release.name}-{kind}-{number // 2}.json"
            path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    facts["builds"] = builds
    for measure in ("wall", "cpu") if builds else ():
        medians = [
            statistics.median(b[measure] for b in builds if b["native"] is native) for native in (True, False)
        ]
        facts[f"{measure}_ratio"] = round(medians[0] / medians[1], 3)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
