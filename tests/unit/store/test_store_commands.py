"""What `gc` and `list --results` say of a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stocking import FIRST, SECOND, make, run_cli

from vllm_variants.model.results import MANIFEST
from vllm_variants.store import Store


@pytest.mark.parametrize("command", [["gc"], ["list", "--results"], ["build", "sm90"]])
@pytest.mark.parametrize("data", ["x" * 300, "/".join(["y" * 200] * 30)])
def test_a_data_folder_that_cannot_be_named_is_a_sentence(
    command: list[str], data: str, tmp_path: Path
) -> None:
    told = run_cli(tmp_path, *command, XDG_DATA_HOME=str(tmp_path / data))
    assert told.returncode == 6, told.stderr
    assert "File name too long" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_results_that_are_damaged_are_listed_with_the_command(here: Store, tmp_path: Path) -> None:
    where = Store(tmp_path / "vllm-variants")
    make(where, FIRST, tmp_path / "result")
    make(where, SECOND)
    (where.path(FIRST) / MANIFEST).write_text("{}")
    told = run_cli(tmp_path, "list", "--results", XDG_DATA_HOME=str(tmp_path), COLUMNS="300")
    assert told.returncode == 0, told.stderr
    line = next(line for line in told.stdout.splitlines() if "damaged" in line)
    assert line.split()[:2] == ["sm90", "0.13.0"]
    assert str(where.path(FIRST) / MANIFEST) in told.stderr
    assert "vllm-variants build sm90 --release 0.13.0" in told.stderr
    as_json = run_cli(tmp_path, "list", "--results", "--json", XDG_DATA_HOME=str(tmp_path))
    first, second = json.loads(as_json.stdout)["results"]
    assert "is not a manifest" in first["problem"] and first["manifest"] is None
    assert "problem" not in second


def test_gc_tells_what_it_would_remove_and_what_it_leaves(here: Store, tmp_path: Path) -> None:
    where = Store(tmp_path / "vllm-variants")
    make(where, SECOND)
    (where.root / "store" / "notes").write_text("mine")
    dry = run_cli(tmp_path, "gc", "--dry-run", XDG_DATA_HOME=str(tmp_path))
    assert (dry.returncode, dry.stdout) == (0, "")
    assert f"would remove {SECOND}" in dry.stderr
    assert "1 would be removed" in dry.stderr
    assert f"left alone: {where.root}/store/notes (not made by vllm-variants)" in dry.stderr
    wet = run_cli(tmp_path, "gc", "--json", XDG_DATA_HOME=str(tmp_path))
    assert [gone["path"] for gone in json.loads(wet.stdout)["removed"]] == [str(where.path(SECOND))]
    assert not where.path(SECOND).exists()
