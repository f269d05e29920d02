"""How nix-fast-build is called; a script stands for it that does with `--max-jobs` what the program does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vllm_variants.builders.outcomes import Status
from vllm_variants.builders.source import fast_build
from vllm_variants.builders.source.options import Options
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request
from vllm_variants.nix.command import Nix

# As version 2.0 does: so many workers take from a queue, and the end waits until the queue is empty.
PROGRAM = """#!{python}
import json, sys, time
words = sys.argv[1:]
json.dump(words, open({seen!r}, "w"))
if int(words[words.index("--max-jobs") + 1]) < 1:
    time.sleep(20)
    sys.exit("nobody builds")
json.dump(dict(results=[]), open(words[words.index("--result-file") + 1], "w"))
"""


@pytest.mark.parametrize(("max_jobs", "processes", "here"), [(0, "2", "0"), (1, "1", "1"), (3, "3", "1")])
def test_it_has_a_worker_even_where_nothing_is_built_here(
    tmp_path: Path, max_jobs: int, processes: str, here: str
) -> None:
    program, seen = tmp_path / "nix-fast-build", tmp_path / "seen"
    program.write_text(PROGRAM.format(python=sys.executable, seen=str(seen)))
    program.chmod(0o755)
    rows = matrix.load()
    requests = [Request(rows.parse(name).variant, rows.default, tmp_path) for name in ("sm80", "sm90")]
    builder = fast_build.FastBuilder(Nix("nix", "."), Options(max_jobs=max_jobs), str(program))
    outcomes = builder.build_all(requests, lambda text: None)
    assert [outcome.status for outcome in outcomes] == [Status.FAILED] * 2
    assert "reported nothing about it" in str(outcomes[0].error)
    words = json.loads(seen.read_text())
    at = words.index("--max-jobs")
    assert words[at : at + 5] == ["--max-jobs", processes, "--option", "max-jobs", here]
