"""Memory and processors that a build may use, and what that makes of `--cores` and `--max-jobs`.

A CUDA compile job of vLLM takes 3 to 8 GB, so memory, not cores, is the limit. The numbers go on
Nix's command line and never into a derivation, whose hash they would move.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PER_JOB = 8_000_000_000  # bytes, the most that one nvcc job was seen to take
CORES_A_BUILD = 8  # further compile jobs are better spent on a second build's serial phases


@dataclass(frozen=True)
class JobLimits:
    """How many builds at once (`max_jobs`), each with how many compile jobs (`cores`).

    `available` is in bytes; `given` says which of the two options a person gave.
    """

    cores: int
    max_jobs: int
    available: int
    processors: int
    given: tuple[str, ...] = ()

    @property
    def too_little(self) -> bool:
        """Whether the memory may run out even so."""
        return self.cores * self.max_jobs * PER_JOB > self.available

    def sentence(self) -> str:
        """The calculation, for a person: `64 GB available ÷ 8 GB a CUDA compile job = 8, … → …`."""
        if not self.max_jobs:
            return f"nothing is built here (--max-jobs 0); {self.cores} compile jobs each on remote machines"
        memory, each = f"{self.available / 1e9:.0f} GB of memory", f"{PER_JOB / 1e9:.0f} GB"
        builds = f"{self.max_jobs} build{'s' if self.max_jobs > 1 else ''} at a time"
        jobs = f"{self.cores} compile job{'s' if self.cores > 1 else ''} each"
        if self.given:
            needs = f"which may take {self.cores * self.max_jobs * PER_JOB / 1e9:.0f} GB"
            return (
                f"{builds}, {jobs} ({' and '.join(self.given)} as asked), {needs} of the {memory} available"
            )
        most = max(1, self.available // PER_JOB)
        sum_ = f"{memory} available ÷ {each} a CUDA compile job = {most}, on {self.processors} processors"
        short = f"; a job may need more than there is: {each}" if self.too_little else ""
        return f"{sum_} → {builds}, {jobs} (--max-jobs {self.max_jobs} --cores {self.cores}){short}"


def limits(
    builds: int,
    available: int,
    processors: int,
    *,
    cores: int | None = None,
    max_jobs: int | None = None,
) -> JobLimits:
    """Share `available` bytes and `processors` among `builds`; what a person gave stays as given."""
    jobs = max(1, min(processors, available // PER_JOB))
    if max_jobs is None:
        max_jobs_that_fit = jobs // (cores or CORES_A_BUILD)
        at_once = max(1, min(builds, max_jobs_that_fit))
    else:
        at_once = max_jobs
    cores_each = cores if cores is not None else max(1, jobs // max(1, at_once))
    given = tuple(name for name, value in (("--cores", cores), ("--max-jobs", max_jobs)) if value is not None)
    return JobLimits(cores_each, at_once, available, processors, given)


def limits_here(builds: int, *, cores: int | None = None, max_jobs: int | None = None) -> JobLimits:
    """`limits` with the memory and the processors that this process may use."""
    return limits(builds, available(), processors(), cores=cores, max_jobs=max_jobs)


def available(root: Path = Path("/")) -> int:
    """Bytes that new programs can have: the system's, or less by the limit of a cgroup above us.

    `root` stands for the file system's root. Page cache that can be given back counts as free.
    """
    match = re.search(r"MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(encoding="ascii"))
    free = int(match[1]) * 1024 if match else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for group, names in _groups(root, "memory"):
        limit, used = _number(group / names[0]), _number(group / names[1])
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used + _reclaimable(group, names[2])))
    return free


def processors(root: Path = Path("/")) -> int:
    """Processors that this process may use: its affinity, or less by a cgroup's quota."""
    count = len(os.sched_getaffinity(0))
    for group, _ in _groups(root, "cpu"):
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            quota, period = (
                str(_number(group / "cpu.cfs_quota_us")),
                str(_number(group / "cpu.cfs_period_us")),
            )
        if quota.isdigit() and period.isdigit():
            count = min(count, max(1, int(quota) // int(period)))
    return count


# The files of limit, use and the name of the cache in memory.stat: cgroup v2, v1.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Our cgroup and those above it, as folders under /sys/fs/cgroup, and how their files are called."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount / controller if controllers else mount
        group = top / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted: its top is then our own.
        while group != top and group.is_relative_to(top):
            yield group, _V1 if controllers else _V2
            group = group.parent
        yield top, _V1 if controllers else _V2


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(group: Path, name: str) -> int:
    try:
        match = re.search(rf"^{name} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0
