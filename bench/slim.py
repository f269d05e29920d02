"""Slim a hard-linked copy of a tree, against `cp -r` of the tree: paired, in turns, in one run.

    python bench/slim.py TREE [--sm 90] [--rules images|all] [--rounds 3] [--work DIR] [--jobs N] [--durable]

The tree is never written to. Each round makes a hard-linked copy (not counted), slims it, and
copies the tree with `cp -r`, in turns; the disk is synced before each. Slimming includes the proof
of every file; with `--durable` each new file is on the disk before it replaces an old one, as the
command does in place (a build does not: it syncs its whole result once). `--rules images` drops
images and nothing else; `all`, the default, compresses and strips too, as a build does. Prints
seconds by the clock and of CPU, the ratios of the medians, and the peak of the memory of all processes
together (resident, sampled every 20 ms; shared pages count in each).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path

from vllm_variants.audit import audit_tree
from vllm_variants.fatbin.codecs import Codec
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.tree import slim_tree
from vllm_variants.model.capability import Capability

RULES = {"images": Rules(), "all": Rules(compress=Codec.ZSTD, keep_symbols=False)}


class Memory(threading.Thread):
    """The peak of the resident memory of this process and its descendants, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._stop_asked = 0, threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop_asked.wait(0.02):
            self.peak = max(self.peak, sum(_resident(pid) for pid in _family(os.getpid())) * page)

    def stop(self) -> int:
        self._stop_asked.set()
        self.join()
        return self.peak


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in _family(int(child)))]


def cpu_seconds() -> float:
    """Of this process and of its children that have ended; workers of an earlier slimming included."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(work: Callable[[], object]) -> float:
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path)
    parser.add_argument("--sm", type=Capability.parse, default=Capability(9, 0))
    parser.add_argument("--rules", choices=sorted(RULES), default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="a folder on the tree's file system")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--durable", action="store_true", help="sync every new file")
    given = parser.parse_args()
    if not given.tree.is_dir():
        parser.error(f"{given.tree} is no folder: give an installed tree, or a result of `build --no-slim`")
    work: Path = given.work or given.tree.parent
    work.mkdir(parents=True, exist_ok=True)
    linked, copied = work / "bench-linked", work / "bench-copied"
    slimming, copying, sizes, peaks = [], [], (0, 0), []
    busy: list[tuple[float, float]] = []
    for _ in range(given.rounds):
        for folder in (linked, copied):
            shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "-al", str(given.tree), str(linked)], check=True)
        memory = Memory()
        memory.start()
        os.sync()
        start, cpu = time.perf_counter(), cpu_seconds()
        rules = RULES[given.rules]
        report = slim_tree(linked, [given.sm], rules, jobs=given.jobs, durable=given.durable)
        slimming.append(time.perf_counter() - start)
        slim_cpu, cpu = cpu_seconds() - cpu, cpu_seconds()
        peaks.append(memory.stop())
        sizes = report.before, report.after
        copying.append(timed(lambda: subprocess.run(["cp", "-r", str(given.tree), str(copied)], check=True)))
        busy.append((slim_cpu, cpu_seconds() - cpu))
        print(
            f"slim {slimming[-1]:6.2f} s ({slim_cpu:.1f} of CPU)   cp -r {copying[-1]:6.2f} s"
            f" ({busy[-1][1]:.1f})   peak {peaks[-1] / 1e6:.0f} MB",
            flush=True,
        )
    memory = Memory()
    memory.start()
    auditing = timed(lambda: audit_tree(given.tree, given.sm))
    audit_peak = memory.stop()
    for folder in (linked, copied):
        shutil.rmtree(folder, ignore_errors=True)
    ratio = statistics.median(slimming) / statistics.median(copying)
    print(f"size {sizes[0] / 1e9:.2f} → {sizes[1] / 1e9:.2f} GB: ratio {sizes[1] / sizes[0]:.3f}")
    print(f"time slim / cp -r (medians): ratio {ratio:.3f}")
    cpu_ratio = statistics.median(a for a, _ in busy) / statistics.median(b for _, b in busy)
    print(f"CPU slim / cp -r (medians): ratio {cpu_ratio:.3f}")
    print(f"peak memory while slimming: {max(peaks) / 1e6:.0f} MB")
    print(f"audit of the tree: {auditing:.2f} s, peak {audit_peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
