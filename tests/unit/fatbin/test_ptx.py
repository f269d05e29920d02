"""Which driver compiles which PTX."""

from __future__ import annotations

import pytest

from vllm_variants.model import matrix
from vllm_variants.model import toolkits as ptx


@pytest.mark.parametrize(
    ("version", "driver"),
    [
        ((8, 8), 575),
        ((8, 7), 570),
        ((8, 5), 555),
        ((7, 1), 455),
        ((6, 4), 450),
        ((9, 0), 580),
        ((9, 9), None),
    ],
)
def test_a_version_needs_the_driver_of_its_toolkit(version: tuple[int, int], driver: int | None) -> None:
    assert ptx.driver(version) == driver


@pytest.mark.parametrize(
    ("cuda", "driver"),
    [
        ("12.9", 575),
        ("12.6", 555),
        ("12.5", 555),
        ("13.0", 580),
        ("13.0.2", 580),
        ("13.1", 590),
        ("13.4", 615),
        ("13.9", None),
        ("10.2", None),
    ],
)
def test_a_toolkit_writes_for_its_own_driver(cuda: str, driver: int | None) -> None:
    assert ptx.driver_of(cuda) == driver


def test_versions_toolkits_and_drivers_rise_together() -> None:
    table = list(ptx.TOOLKITS)
    assert table == sorted(table) == sorted(table, key=lambda each: each.driver)
    assert len({each.ptx for each in table}) == len(table)


def test_the_matrix_declares_toolkits_that_are_known() -> None:
    for release in matrix.load().releases.values():
        assert ptx.driver_of(release.stack.cuda)
