"""Versions as numbers."""

from __future__ import annotations

import pytest

from vllm_variants.versions import numbers, order


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("580.82.07", (580, 82, 7)),
        ("12.9", (12, 9)),
        ("575", (575,)),
        ("0.13.0", (0, 13, 0)),
        ("2.26.0-pre", (2, 26)),
    ],
)
def test_numbers_compare_as_people_mean_them(version: str, found: tuple[int, ...]) -> None:
    assert numbers(version) == found


def test_a_branch_is_older_than_its_releases() -> None:
    assert numbers("560") < numbers("560.28.03") < numbers("575")


def test_releases_are_ordered_as_their_index_orders_them() -> None:
    ordered = ["0.9.2", "0.10.0", "0.14.0rc2", "0.14.0rc10", "0.14.0", "0.14.0+cu130", "0.14.0.post1",
               "0.14.1.dev3", "0.14.1rc1", "0.14.1"]  # fmt: skip
    assert sorted({*ordered}, key=order) == ordered
