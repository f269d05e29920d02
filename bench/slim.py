"""Slim a hard-linked copy of a tree, against `cp -r` of the tree: paired, in turns, in one run.

    python bench/slim.py TREE [--sm 90] [--rounds 3] [--work FOLDER] [--jobs N] [--durable]

The tree is never written to. Each round makes a hard-linked copy (not counted), slims it, and
copies the tree with `cp -r`, in turns; the disk is synced before each. Slimming includes the proof
of every file; with `--durable` each new file is on the disk before it replaces an old one, as the
command does in place (a build does not: it syncs its whole result once). Prints seconds, the ratio
of the medians, and the peak of the memory of all processes together (resident, sampled every 20 ms;
shared pages count in each).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import checkout  # noqa: F401 - puts the checkout's code on the path

from vllm_variants.audit import audit_tree
from vllm_variants.fatbin.tree import slim_tree
from vllm_variants.model.capability import Capability


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="a folder on the tree's file system")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--durable", action="store_true", help="sync every new file")
    given = parser.parse_args()
    work: Path = given.work or given.tree.parent
    linked, copied = work / "bench-linked", work / "bench-copied"
    slimming, copying, sizes, peaks = [], [], (0, 0), []
    for _ in range(given.rounds):
        for folder in (linked, copied):
            shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "-al", str(given.tree), str(linked)], check=True)
        memory = Memory()
        memory.start()
        os.sync()
        start = time.perf_counter()
        report = slim_tree(linked, [given.sm], jobs=given.jobs, durable=given.durable)
        slimming.append(time.perf_counter() - start)
        peaks.append(memory.stop())
        sizes = report.before, report.after
        copying.append(timed(lambda: subprocess.run(["cp", "-r", str(given.tree), str(copied)], check=True)))
        print(
            f"slim {slimming[-1]:6.2f} s   cp -r {copying[-1]:6.2f} s   peak {peaks[-1] / 1e6:.0f} MB",
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
    print(f"peak memory while slimming: {max(peaks) / 1e6:.0f} MB")
    print(f"audit of the tree: {auditing:.2f} s, peak {audit_peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
