"""Memory and processors that a build may use, and the sum that follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.machine import memory

GB = 1_000_000_000


def machine(root: Path, available: int, groups: str, files: dict[str, str]) -> Path:
    """A root with /proc/meminfo, /proc/self/cgroup and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_the_systems_memory_counts_where_no_cgroup_limits(tmp_path: Path) -> None:
    root = machine(tmp_path, 64 * 1024**3, "0::/\n", {"memory.max": "max"})
    assert memory.available(root) == 64 * 1024**3


def test_the_tightest_cgroup_above_us_counts(tmp_path: Path) -> None:
    files = {
        "ci/memory.max": str(40 * GB),
        "ci/memory.current": str(10 * GB),
        "ci/job/memory.max": "max",
        "ci/job/memory.current": str(1 * GB),
    }
    assert memory.available(machine(tmp_path, 64 * GB, "0::/ci/job\n", files)) == 30 * GB


def test_page_cache_that_can_go_is_not_used_memory(tmp_path: Path) -> None:
    files = {
        "memory.max": str(20 * GB),
        "memory.current": str(19 * GB),
        "memory.stat": f"anon 1\ninactive_file {12 * GB}\nactive_file 3",
    }
    assert memory.available(machine(tmp_path, 64 * GB, "0::/\n", files)) == 13 * GB


def test_cgroup_v1_counts_too_also_in_a_container_that_shows_its_own_top(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(16 * GB),
        "memory/memory.usage_in_bytes": str(6 * GB),
        "memory/memory.stat": f"total_inactive_file {2 * GB}",
    }
    groups = "5:cpu,cpuacct:/host/42\n4:memory:/host/42\n0::/\n"
    assert memory.available(machine(tmp_path, 64 * GB, groups, files)) == 12 * GB


def test_a_quota_of_processors_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)))
    root = machine(tmp_path, GB, "0::/job\n", {"job/cpu.max": "600000 100000"})
    assert memory.processors(root) == 6
    (root / "sys/fs/cgroup/job/cpu.max").write_text("max 100000\n")
    assert memory.processors(root) == 32


def test_memory_is_the_limit_not_processors() -> None:
    plan = memory.limits(1, 64 * GB, 64)
    assert (plan.cores, plan.max_jobs) == (8, 1)
    assert "64 GB of memory available ÷ 8 GB a CUDA compile job = 8" in plan.sentence()
    assert "--max-jobs 1 --cores 8" in plan.sentence()


def test_many_variants_on_a_large_machine_are_built_beside_each_other() -> None:
    plan = memory.limits(10, 512 * GB, 96)
    assert (plan.cores, plan.max_jobs) == (8, 8)


def test_what_a_person_gives_stays_and_its_price_is_told() -> None:
    plan = memory.limits(10, 64 * GB, 16, cores=16)
    assert (plan.cores, plan.max_jobs) == (16, 1)
    assert plan.too_little
    assert "may take 128 GB of the 64 GB" in plan.sentence()
    assert memory.limits(10, 64 * GB, 16, max_jobs=2).cores == 4


def test_too_little_memory_still_gives_one_job_and_says_so() -> None:
    plan = memory.limits(3, 5 * GB, 8)
    assert (plan.cores, plan.max_jobs) == (1, 1)
    assert "may need more than there is" in plan.sentence()


@given(
    st.integers(1, 40),
    st.integers(0, 4096 * GB),
    st.integers(1, 512),
)
def test_a_computed_plan_never_asks_for_more_than_there_is(builds: int, free: int, processors: int) -> None:
    plan = memory.limits(builds, free, processors)
    jobs = plan.cores * plan.max_jobs
    assert 1 <= plan.max_jobs <= builds
    assert jobs <= processors
    assert jobs == 1 or jobs * memory.PER_JOB <= free
