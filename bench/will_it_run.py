"""Hold the audit's "runs, waits, nothing" against the driver's, container by container, on a real GPU.

    python bench/will_it_run.py PATH…                          # an environment, wheel or library that is here
    python bench/will_it_run.py PATH… --pack FILE --sm 9.0     # no GPU here: take containers along in a file
    python bench/will_it_run.py FILE                           # and ask the driver there

Each container is handed to the driver as it is (`cuModuleLoadFatBinary`), twice: with
CUDA_DISABLE_PTX_JIT=1, in a process of its own, and with an empty cache of the driver's. Machine code must
load both times, PTX only the second time, and nothing must be refused both times. Of each library and each
set of images the smallest containers are taken (`--most`). Prints each library's counts, what differs, and
how long the driver compiled against what the audit says; exit code 1 if anything differs.

Needs neither git nor a network: a copy of the tree, and lz4, toml and zstandard where Python finds them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

from vllm_variants.audit.find import sources
from vllm_variants.audit.summary import HeldContainer, headers, summarise
from vllm_variants.fatbin.container import containers
from vllm_variants.fatbin.native import schedule
from vllm_variants.fatbin.native.cubin import Bytes
from vllm_variants.fatbin.source import Source
from vllm_variants.fatbin.stub import is_stub
from vllm_variants.model.capability import Capability, Fit, Kind, choose

PROCESSES = max(1, min(8, (os.cpu_count() or 2) // 2))
_MAJOR, _MINOR = 75, 76
"""Attributes of a device: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True)
class Sample:
    """One container of a library: its bytes, how it should fit the device, seconds of PTX to compile."""

    library: str
    data: bytes
    fit: Fit
    seconds: float


def judged(library: str, data: bytes, held: HeldContainer, device: Capability) -> Sample:
    """What the audit says of one container."""
    images = [(kind, image) for image in held.images if (kind := image.kind)]
    best = choose([(kind, image.target) for kind, image in images], device)
    waits = [i.original_size for k, i in images if best and (k, i.target) == (Kind.PTX, best.target)]
    seconds = sum(map(schedule.cpu_seconds, waits)) if best and best.fit is Fit.JIT else 0.0
    return Sample(library, data, best.fit if best else Fit.NONE, seconds)


def samples(path: Path, device: Capability, most: int, longest: float) -> Iterator[Sample]:
    """The smallest containers of every library below a path, at most `most` of each set of images.

    `longest` is how many seconds of compiling one may cost.
    """
    for name, source in sources(path):
        summary = summarise(source, name)
        if not summary or not summary.containers:
            continue
        sets: dict[object, list[HeldContainer]] = defaultdict(list)
        for held in summary.containers:
            if loadable(source, held.container.offset):
                sets[tuple(sorted((str(i.kind), i.target) for i in held.images))].append(held)
        for alike in sets.values():
            for held in sorted(alike, key=lambda held: held.container.size)[:most]:
                container = held.container
                sample = judged(name, source.at(container.offset, container.size), held, device)
                if sample.seconds <= longest:
                    yield sample


def loadable(source: Source, offset: int) -> bool:
    """Whether a program hands it to the driver: `__nv_relfatbin` is for linkers."""
    elf = headers(source)
    return elf is not None and any(
        section.name == ".nv_fatbin" and section.offset <= offset < section.offset + section.size
        for section in elf.sections
    )


# ── taken along ──


def pack(file: Path, found: Iterable[Sample], largest: int) -> None:
    """Write containers of up to `largest` bytes each into a file that `packed` reads on another machine."""
    count = total = 0
    left: Counter[str] = Counter()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for sample in found:
            if len(sample.data) > largest:
                left[sample.library] += 1
                continue
            archive.writestr(f"{count}/{sample.library}", sample.data)
            count, total = count + 1, total + len(sample.data)
    print(f"{file}: {count} containers, {total / 1e6:.1f} MB; {sum(left.values())} larger ones left out")


def packed(file: Path, device: Capability) -> Iterator[Sample]:
    """The containers in such a file, read and judged anew."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            data = archive.read(member)
            source = Bytes(member.filename, data)
            (container,) = containers(source, 0, len(data))
            stubs = frozenset(n for n, image in enumerate(container.images) if is_stub(source, image))
            held = HeldContainer(container, stubs)
            library = f"{file.stem}: {member.filename.partition('/')[2]}"
            yield judged(library, data, held, device)


# ── what the driver says ──


def driver() -> ctypes.CDLL:
    """The driver, with a context of the first GPU."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    for code in (
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
    ):
        if code:
            sys.exit(f"the driver answers {code}: is there a GPU?")
    return cuda


def capability() -> Capability:
    """The first GPU's."""
    cuda, value, found = driver(), ctypes.c_int(), []
    for attribute in (_MAJOR, _MINOR):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0)
        found.append(value.value)
    return Capability(*found)


def load(files: list[str]) -> list[tuple[int, float]]:
    """The driver's answer (0: loaded) and seconds for each file with one container."""
    cuda, answers = driver(), []
    for file in files:
        module, start = ctypes.c_void_p(), time.perf_counter()
        code = cuda.cuModuleLoadFatBinary(ctypes.byref(module), Path(file).read_bytes())
        answers.append((code, time.perf_counter() - start))
        if code == 0:
            cuda.cuModuleUnload(module)
    return answers


def asked(files: list[str], jit: bool) -> list[tuple[int, float]]:
    """`load` in processes of their own, with the driver's compiler or without, and no cache."""
    parts = [files[n::PROCESSES] for n in range(PROCESSES)]

    def one(part: list[str]) -> list[tuple[int, float]]:
        with tempfile.TemporaryDirectory() as cache:
            env = {**os.environ, "CUDA_CACHE_PATH": cache, "CUDA_MODULE_LOADING": "EAGER"}
            env |= {} if jit else {"CUDA_DISABLE_PTX_JIT": "1"}
            command = [sys.executable, __file__, "--load", *part]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"asking the driver ended in {done.returncode}: {done.stderr[-2000:]}")
        return [(code, seconds) for code, seconds in json.loads(done.stdout)]

    with ThreadPoolExecutor(PROCESSES) as pool:
        answers = list(pool.map(one, parts))
    return [answers[n % PROCESSES][n // PROCESSES] for n in range(len(files))]


def compare(found: list[Sample]) -> bool:
    """Ask the driver of every sample, print each library's line; whether all agree."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(number)) for number in range(len(found))]
        for file, sample in zip(files, found, strict=True):
            file.write_bytes(sample.data)
        names = [str(file) for file in files]
        answers = list(zip(asked(names, jit=False), asked(names, jit=True), strict=True))
    by_library: dict[str, list[tuple[Sample, int, int, float]]] = defaultdict(list)
    for sample, ((bare, _), (code, seconds)) in zip(found, answers, strict=True):
        by_library[sample.library].append((sample, bare, code, seconds))
    wrong = sum(_line(library, rows) for library, rows in sorted(by_library.items()))
    fits = dict(Counter(str(sample.fit) for sample in found))
    print(f"{len(found) - wrong} of {len(found)} containers of {len(by_library)} libraries agree: {fits}")
    waited = [(s.seconds, took) for s, ((_, _), (_, took)) in zip(found, answers, strict=True) if s.seconds]
    if waited:
        said, took = map(sum, zip(*waited, strict=True))
        print(f"the driver compiled {len(waited)} in {took:.1f} s; the audit says {said:.1f} s of one core")
    return not wrong


def _line(library: str, rows: list[tuple[Sample, int, int, float]]) -> int:
    wrong = [
        (str(sample.fit), bare, code)
        for sample, bare, code, _ in rows
        if (bare == 0, code == 0) != (sample.fit not in (Fit.JIT, Fit.NONE), sample.fit is not Fit.NONE)
    ]
    waits = [(sample.seconds, seconds) for sample, _, _, seconds in rows if sample.fit is Fit.JIT]
    counts = ", ".join(f"{n} {fit}" for fit, n in Counter(str(row[0].fit) for row in rows).items())
    times = f"; JIT {sum(s for _, s in waits):.1f} s, said {sum(s for s, _ in waits):.1f} s" if waits else ""
    print(f"{'DIFFER' if wrong else 'agree'} {library}: {counts}{times} {wrong[:5] or ''}", flush=True)
    return len(wrong)


def main() -> None:
    """Read the command line, and do it."""
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(load(sys.argv[2:])))
        return
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("paths", nargs="+", type=Path)
    options.add_argument("--most", type=int, default=3, help="containers of each library and set of images")
    options.add_argument("--longest", type=float, default=60.0, help="seconds of compiling one may cost")
    options.add_argument("--pack", type=Path, metavar="FILE", help="write the containers there, ask nobody")
    options.add_argument("--largest", type=int, default=1 << 22, help="bytes of a container that is packed")
    options.add_argument("--sm", type=Capability.parse, help="the device that --pack is for")
    given = options.parse_args()
    if given.pack and not given.sm:
        options.error("--pack needs --sm: which device will be asked?")
    device = given.sm or capability()
    found: list[Sample] = []
    for path in given.paths:
        taken = path.is_file() and path.suffix == ".containers"
        found += packed(path, device) if taken else samples(path, device, given.most, given.longest)
    if given.pack:
        pack(given.pack, found, given.largest)
        print(f"about {sum(sample.seconds for sample in found):.0f} s of one core to compile what waits")
        return
    print(f"for {device.sm}: {PROCESSES} processes at a time")
    sys.exit(not compare(found))


if __name__ == "__main__":
    main()
