"""Reports of a batch that cannot be written; what does not go together is in tests/snapshots/errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_variants.builders.outcomes import Status, outcome_of
from vllm_variants.cli.batch_report import BatchReport
from vllm_variants.cli.build_options import ReportOptions
from vllm_variants.errors import ResourceError
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request


def test_a_full_disk_under_the_lines_of_json_is_a_sentence(tmp_path: Path) -> None:
    rows = matrix.load()
    request = Request(next(iter(rows.variants.values())), rows.default, tmp_path)
    report = BatchReport([request], ReportOptions(jsonl=Path("/dev/full")))
    with report, pytest.raises(ResourceError, match="the disk is full"):
        report.take(outcome_of(request, Status.BUILT))
    assert Path("/dev/full").is_char_device()
