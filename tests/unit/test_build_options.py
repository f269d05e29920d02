"""Options of `build` that do not go together, are empty or name what cannot be: refused, never ignored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_variants.builders.outcomes import Status, outcome_of
from vllm_variants.cli.batch_report import BatchReport
from vllm_variants.cli.build_options import ReportOptions
from vllm_variants.errors import ResourceError
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request

LONG = "x" * 300


def build(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_variants", "build", "sm90", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-jobs", "0"], "--max-jobs goes with --via nix, not with --via wheels"),
        (["--via", "flox", "--max-jobs", "0"], "--max-jobs goes with --via nix, not with --via flox"),
        (["--retries", "0"], "--retries goes with --via nix or flox, not with --via wheels"),
        (["--via", "nix", "--slim"], "--slim goes with --via wheels, not with --via nix"),
        (["--via", "flox", "--no-slim"], "--no-slim goes with --via wheels, not with --via flox"),
        (["--builders", ""], "--builders goes with --via nix, not with --via wheels"),
        (["--no-slim", "--keep-ptx"], "--keep-ptx and --no-slim do not go together"),
        (["--json", "--jsonl", "-"], "--json and --jsonl - do not go together"),
        (["--jsonl", "a", "--summary", "./a"], "--jsonl and --summary name the same file"),
        (["--system", "aarch64-linux"], "--system goes with --all"),
        (["--via", "nix", "--signing-key", "key"], "--signing-key goes with --push"),
        (["--links", ""], "--links is empty"),
        (["--python", ""], "--python is empty"),
        (["--index", ""], "--index is empty"),
        (["--jsonl", ""], "--jsonl is empty"),
        (["--via", "nix", "--logs", ""], "--logs is empty"),
        (["--via", "nix", "--nix-option", ""], "--nix-option is empty"),
        (["--links", "absent"], "hint: make it: mkdir -p absent"),
        (["--links", "file"], "file is a file, not a folder"),
        (["--links", "file/under"], "cannot be used: Not a directory"),
        (["--links", "dangling"], "dangling is a broken link, not a folder"),
        (["--links", "loop"], "Too many levels of symbolic links"),
        (["--links", LONG], "File name too long"),
        (["--links", "/".join([LONG[:200]] * 30)], "File name too long"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    told = build(tmp_path, *arguments)
    assert (told.returncode, told.stdout) == (2, ""), told.stderr
    assert sentence in told.stderr
    assert "Traceback" not in told.stderr
    assert "mkdir -p file" not in told.stderr


def test_a_full_disk_under_the_lines_of_json_is_a_sentence(tmp_path: Path) -> None:
    rows = matrix.load()
    request = Request(next(iter(rows.variants.values())), rows.default, tmp_path)
    report = BatchReport([request], ReportOptions(jsonl=Path("/dev/full")))
    with report, pytest.raises(ResourceError, match="the disk is full"):
        report.take(outcome_of(request, Status.BUILT))
    assert Path("/dev/full").is_char_device()
