"""What may start, how long it takes: arithmetic that needs no compiler."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.fatbin.native import schedule
from vllm_variants.fatbin.native.schedule import Pace

MB = 1_000_000


def test_the_largest_starts_first_and_something_always_runs() -> None:
    assert schedule.next_to_start([30 * MB, 2 * MB], [], 4, available=0) == 0


def test_no_more_run_than_there_are_cores() -> None:
    assert schedule.next_to_start([MB], [(MB, 0), (MB, 0)], 2, available=10**12) is None
    assert schedule.next_to_start([MB], [(MB, 0)], 2, available=10**12) == 0


def test_what_runs_keeps_the_memory_that_it_will_still_take() -> None:
    """A 10 MB PTX peaks at 514 MB: 300 of it are in use, so 214 of the free bytes are spoken for."""
    waiting, running = [10 * MB, MB], [(10 * MB, 300 * MB)]
    assert schedule.memory(10 * MB) == 514 * MB
    assert schedule.next_to_start(waiting, running, 4, available=728 * MB) == 0
    assert schedule.next_to_start(waiting, running, 4, available=727 * MB) == 1  # a smaller one fits
    assert schedule.next_to_start(waiting, running, 4, available=300 * MB) is None


def test_memory_that_became_free_lets_the_next_one_start() -> None:
    running = [(10 * MB, 514 * MB)]
    assert schedule.next_to_start([10 * MB], running, 4, available=500 * MB) is None
    assert schedule.next_to_start([10 * MB], running, 4, available=520 * MB) == 0


def test_the_measured_sizes_take_the_measured_time() -> None:
    """FlashAttention 2 as measured: 26 images with 266.6 MB took 957 CPU seconds."""
    assert 26 * schedule.cpu_seconds(round(266.6e6 / 26)) == pytest.approx(957, rel=0.15)


def test_two_cores_take_half_the_time_but_never_less_than_the_largest() -> None:
    many = [MB] * 40
    assert schedule.total(many, 2) == pytest.approx(schedule.total(many, 1) / 2)
    assert schedule.total([50 * MB, MB, MB], 16) == pytest.approx(schedule.cpu_seconds(50 * MB))
    assert schedule.total([], 2) == 0


def test_a_slow_machine_is_learnt() -> None:
    """Everything takes twice as long here: the estimate follows as work is done."""
    pace = Pace()
    for _ in range(40):
        pace = pace.after(10 * MB, 2 * schedule.cpu_seconds(10 * MB))
    assert pace.seconds(10 * MB) == pytest.approx(2 * schedule.cpu_seconds(10 * MB), rel=0.05)


@given(
    st.lists(st.integers(0, 60 * MB), max_size=30),
    st.lists(st.tuples(st.integers(0, 60 * MB), st.floats(0, 2000)), max_size=8),
    st.integers(1, 64),
)
def test_an_estimate_is_a_time(waiting: list[int], running: list[tuple[int, float]], at_once: int) -> None:
    left = schedule.remaining(waiting, running, at_once, Pace())
    work = sum(map(schedule.cpu_seconds, waiting))
    work += sum(max(schedule.cpu_seconds(size), elapsed) for size, elapsed in running)
    assert 0 <= left <= work * (1 + 1e-9)
