"""Hold the audit's "runs, waits, nothing" against the driver's, on a real GPU.

    python bench/will_it_run.py WHEEL-OR-LIBRARY… [--most 40]

Each container is handed to the driver as it is (`cuModuleLoadFatBinary`), twice: with
CUDA_DISABLE_PTX_JIT=1, in a process of its own, and with an empty cache of the driver's. Machine code must
load both times, PTX only the second time, and nothing must be refused both times. Prints each library's
counts and what differs; exit code 1 if any does.
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
from collections import Counter
from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path

from vllm_variants.audit.find import sources
from vllm_variants.audit.summary import headers, summarise
from vllm_variants.fatbin.source import Source
from vllm_variants.model.capability import Capability, Fit, choose


def load(files: list[str]) -> list[tuple[int, float]]:
    """The driver's answer (0: loaded) and seconds for each file with one container."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    assert cuda.cuInit(0) == 0
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    answers = []
    for file in files:
        module, start = ctypes.c_void_p(), time.perf_counter()
        code = cuda.cuModuleLoadFatBinary(ctypes.byref(module), Path(file).read_bytes())
        answers.append((code, time.perf_counter() - start))
        if code == 0:
            cuda.cuModuleUnload(module)
    return answers


def asked(files: list[str], jit: bool) -> list[tuple[int, float]]:
    """`load` in a process of its own, with the driver's compiler or without, and no cache."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "CUDA_CACHE_PATH": cache, "CUDA_MODULE_LOADING": "EAGER"}
        env |= {} if jit else {"CUDA_DISABLE_PTX_JIT": "1"}
        command = [sys.executable, __file__, "--load", *files]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return [tuple(answer) for answer in json.loads(done.stdout)]


def compare(path: Path, device: Capability, most: int) -> bool:
    good = True
    for name, source in sources(path):
        summary = summarise(source, name)
        if not summary or not summary.containers:
            continue
        held = [each for each in summary.containers if loadable(source, each.container.offset)][:most]
        with tempfile.TemporaryDirectory() as folder:
            files, fits = [], []
            for number, each in enumerate(held):
                file = Path(folder, str(number))
                file.write_bytes(source.at(each.container.offset, each.container.size))
                files.append(str(file))
                best = choose([(kind, i.target) for i in each.images if (kind := i.kind)], device)
                fits.append(best.fit if best else Fit.NONE)
            without, with_jit = asked(files, jit=False), asked(files, jit=True)
        waited, wrong = 0.0, []
        for fit, (bare, _), (code, seconds) in zip(fits, without, with_jit, strict=True):
            expected = (fit not in (Fit.JIT, Fit.NONE), fit is not Fit.NONE)
            waited += seconds if fit is Fit.JIT else 0.0
            if (bare == 0, code == 0) != expected:
                wrong.append((str(fit), bare, code))
        counts = dict(Counter(map(str, fits)))
        print(
            f"{'DIFFER' if wrong else 'agree'} {name}: {counts}, JIT {waited:.1f} s {wrong[:5] or ''}",
            flush=True,
        )
        good &= not wrong
    return good


def loadable(source: Source, offset: int) -> bool:
    """Whether a program hands it to the driver: `__nv_relfatbin` is for linkers."""
    elf = headers(source)
    return elf is not None and any(
        section.name == ".nv_fatbin" and section.offset <= offset < section.offset + section.size
        for section in elf.sections
    )


def main() -> None:
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(load(sys.argv[2:])))
        return
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("paths", nargs="+", type=Path)
    options.add_argument("--most", type=int, default=40, help="containers of each library")
    given = options.parse_args()
    from vllm_variants.machine import gpus

    device = gpus.machine().gpus[0].capability
    agreed = [compare(path, device, given.most) for path in given.paths]
    sys.exit(not all(agreed))


if __name__ == "__main__":
    main()
