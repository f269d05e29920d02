"""Versions as numbers."""

from __future__ import annotations

import pytest

from vllm_variants.versions import numbers


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
