"""The fault suite, short: one round of every kind. `bench/faults.py` is the long one.

The rounds are played once, on all cores, whichever test asks first: with pytest-xdist the others wait.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kinds import KINDS

from vllm_variants.errors import MissingError
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix

ROOT = Path(__file__).resolve().parents[2]
SEED = 7

try:
    interpreters.find(matrix.load().default.stack.python)
except MissingError as absent:
    pytest.skip(f"builds need the release's Python: {absent.message}", allow_module_level=True)


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of `bench/faults.py --each 1`, and what it said on stderr."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    with (shared / "faults.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = shared / "faults.json"
        if not kept.exists():
            command = [sys.executable, str(ROOT / "bench" / "faults.py"), "--each", "1", "--seed", str(SEED)]
            done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
            summary = json.loads(done.stdout) if done.stdout else {"failed": done.stderr}
            kept.write_text(json.dumps({**summary, "said": done.stderr}))
        found: dict[str, Any] = json.loads(kept.read_text())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_invariant_holds(played: dict[str, Any], kind: str) -> None:
    assert "failed" not in played, played["failed"]
    for reason in played["skipped"]:
        if reason.startswith(f"{kind}: "):
            pytest.skip(reason.partition(": ")[2])
    assert played["kinds"][kind]["rounds"] == 1
    broken = [each for each in played["broken_rounds"] if each["kind"] == kind]
    again = f"python bench/faults.py --seed {SEED} --kinds {kind} --round "
    assert not broken, "\n".join(
        [f"{again}{each['number']}\n" + "\n".join(each["broken"]) for each in broken]
    )
