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
FEW = ("-k", "rms_norm or machete or allspark or custom")
HOPPER = {"allspark.w8a16": {"does": "unsupported"}, "all_reduce.custom": {"does": "skipped"}}


def suite(folder: Path, *arguments: str, machine: str) -> tuple[int, str]:
    path = machine if "/" in machine else str(ROOT / "tests" / "machines" / f"{machine}.json")
    environment = os.environ | {
        "VLLM_VARIANTS_MACHINE": path,
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
    assert "it needs 2 cards that the result fits, and there is one" in output
    assert len(stand_in.seen(results / "store" / "sm90")) == 7, "no process for what cannot be tried"
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


def recorded(folder: Path, *cards: tuple[str, str]) -> Path:
    """A recorded machine with these cards: (name, capability) each, ids of their own in this folder."""
    path = folder / "machine.json"
    machine = json.loads((ROOT / "tests" / "machines" / "h100.json").read_text())
    (gpu,) = machine["machine"]["gpus"]
    machine["machine"]["gpus"] = [
        gpu | {"index": index, "name": name, "capability": capability, "uuid": f"GPU-{index}-{folder.name}"}
        for index, (name, capability) in enumerate(cards)
    ]
    path.write_text(json.dumps(machine))
    return path


H100 = ("NVIDIA H100 80GB HBM3", "9.0")
RTX_3090 = ("NVIDIA GeForce RTX 3090", "8.6")


def spread(results: Path, machine: Path, *arguments: str) -> tuple[int, str]:
    pytest.importorskip("xdist", reason="pytest-xdist spreads the tests over workers")
    return suite(results, "-n", "auto", *arguments, machine=str(machine))


def uses(results: Path, short: str) -> list[tuple[set[str], float, float]]:
    """(cards, start, end) of every check that ran with the result for `short`."""
    turns = stand_in.turns(results / "store" / short)
    return [(set(turn["devices"].split(",")), turn["began"], turn["ended"]) for turn in turns]


def test_workers_have_a_card_each_and_a_check_of_two_waits_for_both(results: Path) -> None:
    stand_in.tell(results / "store" / "sm90", {"*": {"does": "ok", "wait": 0.1}})
    machine = recorded(results, H100, H100)
    code, output = spread(results, machine, "-k", "sampling or nccl.all_reduce or custom")
    assert code == 0, output
    assert "2 workers" in output
    used = uses(results, "sm90")
    assert {frozenset(cards) for cards, *_ in used} == {frozenset("0"), frozenset("1"), frozenset("01")}
    assert sum(len(cards) == 2 for cards, *_ in used) == 2
    for index, (cards, began, ended) in enumerate(used):
        for others, other_began, other_ended in used[index + 1 :]:
            assert not cards & others or ended <= other_began or other_ended <= began, "a card used twice"


def test_each_result_goes_to_the_cards_it_fits(results: Path) -> None:
    stand_in.tell(results / "store" / "sm86", {"scaled_mm.fp8": {"does": "unsupported"}})
    machine = recorded(results, RTX_3090, H100, RTX_3090)
    code, output = spread(results, machine, "-k", "rms_norm or custom")
    assert code == 0, output
    assert "3 workers" in output
    assert {card for cards, *_ in uses(results, "sm90") for card in cards} == {"1"}
    assert {card for cards, *_ in uses(results, "sm86") for card in cards} == {"0", "2"}
    assert "it needs 2 cards that the result fits, and there is one" in output, "of sm90"


@pytest.mark.parametrize("when", ["before this check began", "while this check ran"])
def test_a_card_that_is_lost_is_one_sentence(results: Path, when: str) -> None:
    """The stand-in takes the second card out of the recorded machine, as a driver does that has lost it."""
    machine = recorded(results, H100, H100)
    loses = {"loses": str(machine), "does": "failed"} if when.startswith("while") else {"loses": str(machine)}
    first = "all_reduce.custom" if when.startswith("while") else "graphs.capture"
    stand_in.tell(results / "store" / "sm90", {first: loses})
    code, output = suite(results, "-k", "graphs.capture or custom", machine=str(machine))
    assert code == 1, output
    name = f"GPU 1 (NVIDIA H100 80GB HBM3, GPU-1-{results.name})"
    sentence = f"all_reduce.custom: {name} was lost {when}: the driver no longer lists it"
    assert sentence in output
    assert "Traceback" not in output
    assert "1 passed" in output


def test_the_cards_that_are_left_go_on(results: Path) -> None:
    machine = recorded(results, H100, H100)
    stand_in.tell(results / "store" / "sm90", {"graphs.capture": {"loses": str(machine)}})
    code, output = suite(results, "-k", "graphs.capture or eager", machine=str(machine))
    assert code == 0, output
    assert "2 passed" in output
    assert "was lost since this run began" in output
