"""`pytest tests/gpu` itself, on stand-in results and recorded machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stand_in

ROOT = Path(__file__).resolve().parents[3]
SUITE = ROOT / "tests" / "gpu"
FEW = ("-k", "rms_norm or machete or allspark or all_reduce")
HOPPER = {"allspark.w8a16": {"does": "unsupported"}, "all_reduce.custom": {"does": "skipped"}}


def suite(folder: Path, *arguments: str, machine: str) -> tuple[int, str]:
    environment = os.environ | {
        "VLLM_VARIANTS_MACHINE": str(ROOT / "tests" / "machines" / f"{machine}.json"),
        "PYTHONPATH": str(ROOT / "python"),
    }
    for key in [key for key in environment if key.startswith("PYTEST_")]:
        del environment[key]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider",
         str(SUITE), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    return completed.returncode, completed.stdout + completed.stderr


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a result for sm90 and one for sm86."""
    for short in ("sm90", "sm86"):
        made = stand_in.make(tmp_path / "store" / short, HOPPER, short=short)
        (tmp_path / f"result-vllm-python312-cuda12_9-{short}").symlink_to(made)
    return tmp_path


def test_every_fitting_result_is_checked_and_the_others_are_not(results: Path) -> None:
    code, output = suite(results, *FEW, machine="h100")
    assert code == 0, output
    assert "7 passed, 1 skipped" in output
    assert len(stand_in.seen(results / "store" / "sm90")) == 8
    assert not stand_in.seen(results / "store" / "sm86")


def test_a_failure_carries_the_sentence_and_the_seed(results: Path) -> None:
    stand_in.tell(results / "store" / "sm90", HOPPER | {"norm.rms_norm": {"does": "crash"}})
    code, output = suite(results, *FEW, "--seed", "77", machine="h100")
    assert code == 1
    assert "its process crashed (SIGSEGV)" in output
    assert "(seed 77)" in output
    assert "Error" not in output, "the sentence is enough"


def test_a_machine_without_a_gpu_skips_with_one_clear_line(results: Path) -> None:
    code, output = suite(results, machine="no-gpu")
    assert code == 0
    assert "1 skipped" in output
    assert "there is no GPU" in output


def test_another_gpu_skips_with_the_reason(results: Path) -> None:
    code, output = suite(results, "--variant", "sm90", machine="l40s")
    assert code == 0
    assert "built for compute capability 9.0, and this machine has NVIDIA L40S (8.9)" in output


def test_result_and_markers_choose(results: Path) -> None:
    path = str(results / "store" / "sm90")
    code, output = suite(results, "--result", path, *FEW, "-m", "sm90", machine="h100")
    assert code == 0, output
    assert "7 passed" in output
    code, output = suite(results, "-m", "sm86", machine="h100")
    assert code == 5, output  # nothing was collected


def test_workers_have_a_card_each(results: Path) -> None:
    pytest.importorskip("xdist", reason="pytest-xdist spreads the tests over workers")
    machine = results / "two.json"
    recorded = json.loads((ROOT / "tests" / "machines" / "h100.json").read_text())
    (gpu,) = recorded["machine"]["gpus"]
    recorded["machine"]["gpus"] = [gpu, gpu | {"index": 1, "uuid": "GPU-11111111"}]
    machine.write_text(json.dumps(recorded))
    environment = os.environ | {"VLLM_VARIANTS_MACHINE": str(machine), "PYTHONPATH": str(ROOT / "python")}
    for key in [key for key in environment if key.startswith("PYTEST_")]:
        del environment[key]
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider",
         str(SUITE), "-n", "auto", "-k", "moe or all_reduce", "-v"],
        cwd=results, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    output = completed.stdout + completed.stderr
    assert completed.returncode == 0, output
    assert "2 workers" in output
    seen = stand_in.seen(results / "store" / "sm90")
    assert {call["devices"] for call in seen if call["check"] != "all_reduce.custom"} == {"0", "1"}
    (both,) = [call["devices"] for call in seen if call["check"] == "all_reduce.custom"]
    assert sorted(both.split(",")) == ["0", "1"]
