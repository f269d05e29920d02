"""The PTX of releases: written to one file here, compiled into a cache of cubins on another machine.

    python bench/cubins.py export FILE [--release V …] [--sm 90 …] [--system S …] [--tree DIR] [--work DIR]
    python bench/cubins.py compile FILE --cache DIR --ptxas PATH [--only-sm 90,100] [--only PATTERN]
                                        [--seconds N] [--at-once N] [--report FILE]
    python bench/cubins.py split FILE --parts N

`export` plans every library of the published wheels (of each release, all of one CUDA, for each SM that it
has code for; default: all; of x86_64 unless told), as `build --native` does, and writes each PTX text once,
with all that decides its cubins. `compile` needs this package, lz4 and zstandard, no vLLM, no network: it is
the product's own queue, largest first, as many at once as processors and memory allow, over the cache that
`VLLM_VARIANTS_CUBINS` can name afterwards. What is in the cache is not compiled again; with `--seconds` it
stops in time, and the next run goes on. The compiler is part of a cubin's key, so `compile` refuses a ptxas
that is not the exporting machine's (`python -c 'from vllm_variants.builders.wheels import compilers;
print(compilers.compiler("12.9").ptxas)'`).

`split` makes FILE.1 to FILE.N of a file that is too large to carry, each whole by itself.

FILE is a tar in zstd with a window as large as its content: `ptx/SHA256` and, last, `jobs.json`.
Prints a JSON object.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import itertools
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import zstandard

# Not `checkout`, which wants what tests need: compiling must run with this package and two codecs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from vllm_variants.errors import Error
from vllm_variants.fatbin import codecs
from vllm_variants.fatbin.native import cache as caches
from vllm_variants.fatbin.native import queue
from vllm_variants.fatbin.native.cache import Cache
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.native.library import plan_tree
from vllm_variants.fatbin.native.ptx import text_of
from vllm_variants.fatbin.native.queue import Compiled, Failed, Job, Limits, Progress
from vllm_variants.fatbin.source import opened
from vllm_variants.fatbin.tree import elf_files
from vllm_variants.machine import memory
from vllm_variants.model.capability import Capability, Target
from vllm_variants.model.platforms import SYSTEMS

_SCHEMA = 1
_WINDOW = 30
"""As a power of two: one GB, so that texts that resemble each other across libraries cost nothing."""


@dataclass(frozen=True)
class Text:
    """A PTX text to compile for a target; `wanted_by` are the places, for people. `size` in bytes."""

    sha256: str
    size: int
    target: str
    options: tuple[str, ...]
    wanted_by: tuple[str, ...]


def planned(release: str, tree: Path, devices: Sequence[Capability]) -> Iterator[tuple[Text, bytes]]:
    """Every PTX of a tree that one of the devices would compile, with its text; `tree` as published."""
    for plan in plan_tree(elf_files(tree), tree, devices):
        with opened(plan.path) as source:
            for need, options in plan.needs:
                text = text_of(codecs.raw_payload(source, need.image))
                place = f"{release} {need.device.sm} {plan.path.name} at {need.container.offset:#x}"
                digest = hashlib.sha256(text).hexdigest()
                yield Text(digest, len(text), need.target.sm, options, (place,)), text


def missing(release: str, tree: Path, device: Capability, compiler: Compiler) -> int:
    """How many cubins of a device the cache that builds use lacks."""
    cache = Cache(caches.default_folder())
    return sum(
        not cache.path(caches.key_of(content, Target.parse(text.target), text.options, compiler)).exists()
        for text, content in planned(release, tree, [device])
    )


def export(given: argparse.Namespace) -> dict[str, Any]:
    """Write FILE; what is in it."""
    import published

    from vllm_variants.builders.wheels import compilers
    from vllm_variants.model import matrix, offers

    rows = matrix.load()
    releases = [rows.release(name) for name in given.release or rows.releases]
    if len(toolkits := sorted({release.stack.cuda for release in releases})) > 1:
        sys.exit(f"error: one file is for one compiler; name releases of one CUDA: {' or '.join(toolkits)}")
    compiler = compilers.compiler(toolkits[0])
    jobs: dict[tuple[str, str, tuple[str, ...]], Text] = {}
    started = time.monotonic()
    packing = zstandard.ZstdCompressor(compression_params=_parameters(given.level))
    with (
        tempfile.TemporaryDirectory(prefix="vllm-variants-published.", dir=given.work) as work,
        given.file.open("wb") as file,
        packing.stream_writer(file) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        written: set[str] = set()
        for release, system in itertools.product(releases, given.system):
            tree = given.tree or published.install(release, Path(work, f"{release.name}-{system}"), system)
            offered = {v.capability for v in offers.of(rows, release).values() if v.system == system}
            for job, text in planned(release.name, tree, given.sm or sorted(offered)):
                key = job.sha256, job.target, job.options
                known = jobs.get(key)
                jobs[key] = replace(job, wanted_by=(*known.wanted_by, *job.wanted_by)) if known else job
                if job.sha256 not in written:
                    written.add(job.sha256)
                    _add(tar, f"ptx/{job.sha256}", text)
        _add_jobs(tar, compiler.as_dict(), jobs.values())
    sizes = {job.sha256: job.size for job in jobs.values()}
    return {
        "file": str(given.file), "bytes": given.file.stat().st_size, "texts": len(sizes),
        "text_bytes": sum(sizes.values()), "jobs": len(jobs), "jobs_by_target": _by_target(jobs.values()),
        "wall_seconds": round(time.monotonic() - started, 1), "compiler": compiler.as_dict(),
    }  # fmt: skip


def _parameters(level: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(level, window_log=_WINDOW, enable_ldm=True)


def _by_target(jobs: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.target] = counts.get(job.target, 0) + 1
    return counts


def _add_jobs(tar: tarfile.TarFile, compiler: Any, jobs: Iterable[Text]) -> None:
    largest_first = sorted(jobs, key=lambda job: (-job.size, job.sha256))
    facts = {"schema": _SCHEMA, "compiler": compiler, "jobs": [asdict(job) for job in largest_first]}
    _add(tar, "jobs.json", json.dumps(facts, indent=1).encode())


def split(given: argparse.Namespace) -> dict[str, Any]:
    """Write FILE.1 to FILE.N, of about as many bytes of text each; what is in them."""
    with tempfile.TemporaryDirectory(prefix="vllm-variants-cubins.", dir=given.work) as work:
        facts, texts = unpack(given.file, Path(work))
        by_place = sorted({text.sha256: text for text in texts}.values(), key=lambda text: text.wanted_by)
        room, parts = sum(text.size for text in by_place) / given.parts, list[list[Text]]()
        taken = 0.0
        for text in by_place:  # texts of one library resemble each other, and stay together
            if taken >= room * len(parts):
                parts.append([])
            parts[-1].append(text)
            taken += text.size
        return {"parts": [
            _part(given, number, facts["compiler"], part, texts, Path(work, "ptx"))
            for number, part in enumerate(parts, 1)
        ]}  # fmt: skip


def _part(
    given: argparse.Namespace, number: int, compiler: Any, part: Sequence[Text], texts: Sequence[Text],
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    path = given.file.with_name(f"{given.file.name}.{number}")
    packing = zstandard.ZstdCompressor(compression_params=_parameters(given.level))
    with (
        path.open("wb") as file,
        packing.stream_writer(file) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        for text in part:
            _add(tar, f"ptx/{text.sha256}", Path(folder, text.sha256).read_bytes())
        held = {text.sha256 for text in part}
        jobs = [text for text in texts if text.sha256 in held]
        _add_jobs(tar, compiler, jobs)
    return {
        "file": str(path), "bytes": path.stat().st_size, "texts": len(part),
        "text_bytes": sum(text.size for text in part), "jobs": len(jobs), "jobs_by_target": _by_target(jobs),
    }  # fmt: skip


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def unpack(file: Path, into: Path) -> tuple[dict[str, Any], list[Text]]:
    """Unpack FILE; what it says of itself, and its jobs, largest first. The texts are in `into`/ptx."""
    with (
        file.open("rb") as packed,
        zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW).stream_reader(packed) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        tar.extractall(into, filter="data")
    facts = json.loads((into / "jobs.json").read_text(encoding="utf-8"))
    if facts["schema"] != _SCHEMA:
        sys.exit(f"error: {file} is of schema {facts['schema']}, and this is {_SCHEMA}")
    jobs = [
        Text(job["sha256"], job["size"], job["target"], tuple(job["options"]), tuple(job["wanted_by"]))
        for job in facts["jobs"]
    ]
    return facts, jobs


def compile_texts(given: argparse.Namespace) -> dict[str, Any]:
    """Compile what FILE holds into the cache; what became of it."""
    compiler = Compiler.at(given.ptxas.absolute())
    with tempfile.TemporaryDirectory(prefix="vllm-variants-cubins.", dir=given.work) as work:
        facts, texts = unpack(given.file, Path(work))
        if compiler.as_dict() != facts["compiler"]:
            sys.exit(f"error: the file is for {facts['compiler']}, and {given.ptxas} is {compiler.as_dict()}")
        chosen = [text for text in texts if _is_chosen(text, given)]
        return _compile([_job(text, Path(work)) for text in chosen], compiler, given)


def _is_chosen(text: Text, given: argparse.Namespace) -> bool:
    capability = Target.parse(text.target).capability
    by_name = any(fnmatch.fnmatch(place, f"*{given.only}*") for place in text.wanted_by)
    return (not given.only_sm or capability in given.only_sm) and by_name


def _job(text: Text, work: Path) -> Job:
    name = f"{text.wanted_by[0]} for {text.target}"
    read = partial(Path.read_bytes, work / "ptx" / text.sha256)
    return Job(name, text.size, Target.parse(text.target), text.options, read)


def _compile(jobs: Sequence[Job], compiler: Compiler, given: argparse.Namespace) -> dict[str, Any]:
    notes: list[str] = []
    cache, started = Cache(given.cache.absolute(), note=notes.append), time.monotonic()
    limits = Limits(given.at_once or memory.processors(), memory.available)
    ended: list[Compiled | Failed] = []
    outcomes = queue.compile_all(jobs, compiler, cache, limits, progress=_Talk(), folder=given.work)
    stopped = False
    for outcome in outcomes:
        ended.append(outcome)
        if given.seconds and time.monotonic() - started > given.seconds:
            stopped = True
            break
    outcomes.close()  # type: ignore[attr-defined]
    compiled = [one for one in ended if isinstance(one, Compiled)]
    fresh = [one for one in compiled if not one.cached]
    return {
        "compiler": compiler.as_dict(), "jobs": len(jobs), "compiled": len(fresh),
        "from_cache": len(compiled) - len(fresh), "left": len(jobs) - len(ended), "stopped": stopped,
        "at_once": limits.at_once, "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(sum(one.seconds for one in fresh), 1),
        "peak_bytes": max((one.peak for one in fresh), default=0),
        "cache": asdict(cache.usage()), "notes": notes,
        "failed": [{"name": one.job.name, "reason": one.reason} for one in ended if isinstance(one, Failed)],
        "each": [
            {"name": one.job.name, "target": one.job.target.sm, "options": list(one.job.options),
             "ptx_sha256": hashlib.sha256(one.job.read()).hexdigest(), "ptx": one.job.size,
             "cubin": len(one.cubin), "kernels": len(one.ptx.entries), "cpu_seconds": round(one.seconds, 2),
             "peak_bytes": one.peak}
            for one in fresh
        ],
    }  # fmt: skip


class _Talk:
    """Progress on stderr, a line every ten seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, state: Progress) -> None:
        if time.monotonic() - self._last > 10 or state.done == state.total:
            self._last = time.monotonic()
            print(state.sentence(), file=sys.stderr, flush=True)


def main() -> None:
    """Export or compile, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_subparsers(required=True)
    writing = modes.add_parser("export", help="write the PTX of published wheels")
    writing.set_defaults(run=export)
    writing.add_argument("--release", nargs="*", help="default: all")
    writing.add_argument(
        "--sm", nargs="*", type=Capability.parse, help="default: all that the release has code for"
    )
    writing.add_argument("--system", nargs="*", choices=SYSTEMS, default=SYSTEMS[:1])
    writing.add_argument("--tree", type=Path, help="a published tree, instead of installing the release")
    splitting = modes.add_parser("split", help="write such a file as several")
    splitting.set_defaults(run=split)
    splitting.add_argument("--parts", type=int, required=True)
    compiling = modes.add_parser("compile", help="compile them into a cache of cubins")
    compiling.set_defaults(run=compile_texts)
    compiling.add_argument("--cache", type=Path, required=True)
    compiling.add_argument("--ptxas", type=Path, required=True)
    compiling.add_argument("--only-sm", type=_capabilities, help="90,100")
    compiling.add_argument("--only", default="", help="a pattern: release, SM and library's name")
    compiling.add_argument("--seconds", type=float, help="stop after so many, when the next one ends")
    compiling.add_argument("--at-once", type=int, help="default: processors")
    compiling.add_argument("--report", type=Path, help="write the JSON there too")
    for mode in (writing, splitting):
        mode.add_argument("--level", type=int, default=9, help="of zstd")
    for mode in (writing, splitting, compiling):
        mode.add_argument("file", type=Path)
        mode.add_argument("--work", type=Path, help="where temporary files go")
    given = parser.parse_args()
    try:
        facts = given.run(given)
    except Error as error:
        sys.exit(f"error: {error.message}")
    text = json.dumps(facts, indent=1)
    print(text)
    if getattr(given, "report", None):
        given.report.write_text(text + "\n", encoding="utf-8")


def _capabilities(text: str) -> list[Capability]:
    return [Capability.parse(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
