"""The tables of sizes and containers, and the promises that the recorded figures keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_variants import data
from vllm_variants.maintain import measurements
from vllm_variants.model import matrix, offers

PLAIN = {
    "installed": 1000, "images": 600, "compress": 500, "symbols": 450, "files": 400, "result": 410,
    "ratio": 0.41, "containers": {"native": 1234, "jit": 2}, "verdict": "jit",
}  # fmt: skip
COUNTED = {"ptx_bytes": 3_000_000, "compilations": 2, "cpu_seconds_known_for": 1, "cpu_seconds": 7}
COMPILED = {
    **COUNTED, "cpu_seconds_known_for": 2, "result": 405, "ratio": 0.405, "verdict": "pass",
    "containers": {"native": 1236, "jit": 0},
}  # fmt: skip
PROMISED = {"0.33.0": (0.66, 0.63), "0.13.0": (0.41, 0.39), "0.11.2": (0.41, 0.39)}
"""The most that sm90, and sm80 to sm89, are of what is published."""
RECORDED = (data.checkout() or Path()) / "docs" / "measurements-variants.json"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    rows = {"1.0": {"sm80": {**PLAIN, "native": COMPILED}, "sm90": {**PLAIN, "native": COUNTED}}}
    (tmp_path / "measurements-variants.json").write_text(json.dumps({"schema": 1, "rows": rows}))
    return tmp_path


def test_sizes_are_shares_of_what_is_installed(docs: Path) -> None:
    head, (first, second) = measurements.sizes(docs)
    assert len(head) == len(first) == len(second)
    assert list(first[3:7]) == ["0.600", "0.500", "0.450", "0.400"]
    assert "**0.410**" in first[7] and "0.405" in first[8]
    assert second[8] == ""


def test_what_was_not_compiled_is_counted_and_no_more(docs: Path) -> None:
    head, (first, second) = measurements.containers(docs)
    assert len(head) == len(first) == len(second)
    assert list(first[7:]) == ["1,236, 0, `pass`", "3 MB", "7 s"]
    assert list(second[7:]) == ["", "3 MB", ""]


@pytest.mark.skipif(
    not RECORDED.is_file(), reason="the figures are in a checkout, not in an installed package"
)
def test_the_recorded_figures_keep_what_is_promised() -> None:
    rows = json.loads(RECORDED.read_text())["rows"]
    for release, (hopper, ampere) in PROMISED.items():
        assert rows[release]["sm90"]["ratio"] <= hopper
        assert all(rows[release][short]["ratio"] <= ampere for short in ("sm80", "sm86", "sm89"))


@pytest.mark.skipif(
    not RECORDED.is_file(), reason="the figures are in a checkout, not in an installed package"
)
def test_the_newest_release_was_measured_whole_and_on_x86_64_no_foreign_code_stays() -> None:
    """In libraries for aarch64 a page is 64 KiB: code in smaller pieces cannot be cut (docs/releases.md)."""
    rows, matrix_rows = json.loads(RECORDED.read_text())["rows"], matrix.load()
    newest = matrix_rows.newest_first[0]
    offered = offers.of(matrix_rows, newest)
    assert rows[newest.name].keys() == offered.keys()
    here = [short for short, variant in offered.items() if variant.system == "x86_64-linux"]
    verdicts = {rows[newest.name][short]["verdict"] for short in here}
    assert verdicts <= {"pass", "jit"}
