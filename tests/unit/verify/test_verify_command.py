"""`vllm-variants verify`, whole, on a stand-in result and a recorded machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import stand_in

from vllm_variants import data

ROOT = Path(__file__).resolve().parents[3]
MACHINES = ROOT / "tests" / "machines"
FEW = ("--only", "norm.rms_norm", "--only", "machete.gptq_4bit", "--only", "allspark.w8a16")
# What an H100 shows for these three.
HOPPER = {"allspark.w8a16": {"does": "unsupported", "outcome": {"reason": "not on 9.0"}}}


def verify(folder: Path, *arguments: str, machine: str = "h100") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "VLLM_VARIANTS_MACHINE": str(MACHINES / f"{machine}.json"),
        "PYTHONPATH": str(ROOT / "python") if data.checkout() else "",
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-m", "vllm_variants", "verify", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> Path:
    made = stand_in.make(tmp_path / "store" / "sm90", HOPPER)
    (tmp_path / "result-vllm-python312-cuda12_9-sm90").symlink_to(made)
    return made


def test_a_good_result_passes_with_a_table(tmp_path: Path, result: Path) -> None:
    completed = verify(tmp_path, "sm90", *FEW)
    assert completed.returncode == 0, completed.stderr
    assert "norm.rms_norm" in completed.stdout
    assert "0.0001 of 0.001" in completed.stdout
    assert "2 ok, 1 rightly unsupported" in completed.stderr


def test_facts_of_the_manifest_and_the_card_reach_the_interpreter(tmp_path: Path, result: Path) -> None:
    verify(tmp_path, "sm90", "--only", "norm.rms_norm", "--seed", "5")
    (seen,) = stand_in.seen(result)
    assert seen["devices"] == "0", "vLLM reads it as a number"
    assert seen["seed"] == "5"
    assert seen["facts"] == {
        "vllm": "0.13.0", "capability": "9.0", "torch": "2.9.1", "cuda": "12.9", "python": "3.12",
        "driver": "560", "vllm_program": str(result / "bin" / "vllm"), "inside": [str(result)],
    }  # fmt: skip


def test_a_result_that_is_not_there_is_asked_for_by_its_name(tmp_path: Path) -> None:
    completed = verify(tmp_path, "sm89", machine="mixed")
    assert completed.returncode == 4
    assert "there is no result at result-vllm-python312-cuda12_9-sm89" in completed.stderr
    assert "vllm-variants build sm89" in completed.stderr


def test_cuda_visible_devices_chooses_among_the_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = stand_in.make(tmp_path / "sm89", short="sm89")
    arguments = ("--result", "sm89", "--only", "norm.rms_norm")
    assert verify(tmp_path, *arguments, machine="mixed").returncode == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert verify(tmp_path, *arguments, machine="mixed").returncode == 0
    assert [each["devices"] for each in stand_in.seen(result)] == ["0", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    completed = verify(tmp_path, *arguments, machine="mixed")
    assert completed.returncode == 3
    assert "this machine has NVIDIA GeForce RTX 3090 (8.6)" in completed.stderr
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    completed = verify(tmp_path, *arguments, machine="mixed")
    assert completed.returncode == 3
    assert "CUDA_VISIBLE_DEVICES= leaves no GPU of this machine to use" in completed.stderr


def test_checks_of_two_cards_get_those_that_fit_and_the_report_names_both(tmp_path: Path) -> None:
    result = stand_in.make(tmp_path / "sm89", {"scaled_mm.fp8": {"does": "ok"}}, short="sm89")
    arguments = ("--result", "sm89", "--only", "nccl.all_reduce", "--only", "norm.rms_norm", "--json")
    completed = verify(tmp_path, *arguments, machine="mixed")
    assert completed.returncode == 0, completed.stderr
    document = json.loads(completed.stdout)
    assert [gpu["index"] for gpu in document["gpus"]] == [0, 2]
    both, one = sorted(document["checks"], key=lambda check: check["check"])
    assert both["cards"] == 2 and "cards" not in one
    assert {call["check"]: call["devices"] for call in stand_in.seen(result)} == {
        "nccl.all_reduce": "0,2", "norm.rms_norm": "0",
    }  # fmt: skip


def test_a_card_that_fits_and_is_hidden_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.make(tmp_path / "sm86", short="sm86")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    completed = verify(tmp_path, "--result", "sm86", machine="mixed")
    assert completed.returncode == 3
    assert "this machine has NVIDIA GeForce RTX 4090 (8.9)" in completed.stderr
    assert "CUDA_VISIBLE_DEVICES=0 hides one that fits: GPU 1, NVIDIA GeForce RTX 3090" in completed.stderr


def test_json_is_one_document_with_everything(tmp_path: Path, result: Path) -> None:
    completed = verify(tmp_path, "sm90", *FEW, "--json", "--seed", "11")
    document = json.loads(completed.stdout)
    assert document["good"] is True
    assert (document["seed"], document["driver"]) == (11, "580.82.07")
    assert document["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    assert [each["verdict"] for each in document["checks"]] == ["passed"] * 3
    assert document["checks"][0]["cases"][0]["tolerance"] == 1e-3


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"norm.rms_norm": {"does": "crash"}}, "norm.rms_norm: its process crashed (SIGSEGV)"),
        ({"machete.gptq_4bit": {"does": "unsupported"}}, "machete.gptq_4bit: sm90 must run this"),
        ({"allspark.w8a16": {"does": "ok"}}, "allspark.w8a16: it works, and vLLM 0.13.0 is not known"),
    ],
)
def test_a_bad_result_fails_with_the_sentence(
    tmp_path: Path, result: Path, behaviour: dict[str, object], says: str
) -> None:
    stand_in.tell(result, HOPPER | behaviour)
    completed = verify(tmp_path, "sm90", *FEW, "--junit", "junit.xml")
    assert completed.returncode == 5
    assert says in completed.stderr
    assert "hint:" in completed.stderr
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("failures") == "1"


def test_all_skipped_is_not_a_pass(tmp_path: Path, result: Path) -> None:
    stand_in.tell(result, {"*": {"does": "skipped"}})
    completed = verify(tmp_path, "sm90", *FEW)
    assert completed.returncode == 5
    assert "nothing was proven" in completed.stderr


@pytest.mark.parametrize(
    ("machine", "code", "says"),
    [
        ("no-gpu", 3, "there is no GPU to check sm90 on"),
        ("no-driver", 3, "there is no GPU to check sm90 on"),
        ("l40s", 3, "sm90 is built for compute capability 9.0, and this machine has NVIDIA L40S (8.9)"),
    ],
)
def test_machines_that_cannot_are_refused(
    tmp_path: Path, result: Path, machine: str, code: int, says: str
) -> None:
    completed = verify(tmp_path, "sm90", *FEW, machine=machine)
    assert completed.returncode == code
    assert says in completed.stderr
    assert not stand_in.seen(result), "no interpreter was started"


@pytest.mark.parametrize(("oldest", "noted"), [(575, True), (570, False), (None, False)])
def test_a_driver_too_old_for_the_ptx_is_noted_and_the_checks_run(
    tmp_path: Path, oldest: int | None, noted: bool
) -> None:
    made = stand_in.make(tmp_path / "a30", short="sm80")
    file = made / "share" / "vllm-variants" / "manifest.json"
    audited = {"name": "audit", "totals": {"jit_containers": 9, "jit_driver": oldest}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": [audited]}))
    completed = verify(tmp_path, "--result", "a30", "--only", "norm.rms_norm", machine="one-of-two")
    assert completed.returncode == 0, completed.stderr
    sentence = "9 containers of sm80 have only PTX for this GPU, which it takes 575 to compile"
    assert (sentence in completed.stderr) == noted


def test_an_old_driver_is_refused(tmp_path: Path) -> None:
    stand_in.make(tmp_path / "a100", short="sm80")
    completed = verify(tmp_path, "sm80", "--result", "a100", machine="old-driver")
    assert completed.returncode == 3
    assert "the NVIDIA driver is 535.183.01, and sm80 needs 560 or newer" in completed.stderr


def test_a_wrong_variant_is_refused_before_anything_runs(tmp_path: Path) -> None:
    stand_in.make(tmp_path / "sm86", short="sm86")
    completed = verify(tmp_path, "--result", "sm86", *FEW)
    assert completed.returncode == 3
    assert "sm86 is built for compute capability 8.6, and this machine has NVIDIA H100" in completed.stderr
    completed = verify(tmp_path, "sm90", "--result", "sm86", *FEW)
    assert completed.returncode == 2
    assert "is a result for sm86, not for sm90" in completed.stderr


def test_another_platform_is_refused(tmp_path: Path) -> None:
    stand_in.make(tmp_path / "arm", short="sm90-arm64")
    completed = verify(tmp_path, "--result", "arm", *FEW)
    assert completed.returncode == 3
    assert "sm90-arm64 is for aarch64-linux and this host is x86_64-linux" in completed.stderr


def test_a_missing_result_names_the_command(tmp_path: Path) -> None:
    completed = verify(tmp_path, "sm90")
    assert completed.returncode == 4
    assert "vllm-variants build" in completed.stderr
    assert verify(tmp_path).returncode == 2


def test_a_name_that_no_file_can_have_is_a_sentence(tmp_path: Path, result: Path) -> None:
    for arguments in (("--result", "x" * 300), ("sm90", "--compare", "x" * 300)):
        completed = verify(tmp_path, *arguments)
        assert completed.returncode == 2, completed.stderr
        assert "File name too long" in completed.stderr
        assert "Traceback" not in completed.stderr


def test_a_file_where_the_logs_should_go_is_a_sentence(tmp_path: Path, result: Path) -> None:
    (tmp_path / "file").write_text("mine")
    completed = verify(tmp_path, "sm90", *FEW, "--logs", "file")
    assert completed.returncode == 2
    assert "the logs cannot go to file: file is not a folder" in completed.stderr
    assert "--logs FOLDER" in completed.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_time_that_was_too_short_is_told_as_that(tmp_path: Path, result: Path) -> None:
    stand_in.tell(result, {"*": {"does": "hang"}})
    completed = verify(tmp_path, "sm90", *FEW, "--time", "2")
    assert completed.returncode == 5
    assert "the time was over before 3 of 3 checks: raise --time, or leave it out" in completed.stderr


def test_compare_says_what_is_identical_and_what_is_not(tmp_path: Path, result: Path) -> None:
    other = stand_in.make(tmp_path / "other", HOPPER)
    completed = verify(tmp_path, "sm90", *FEW, "--compare", str(other), "--json")
    assert completed.returncode == 0, completed.stderr
    document = json.loads(completed.stdout)
    assert {each["check"]: each["likeness"] for each in document["checks"]} == {
        "norm.rms_norm": "same", "machete.gptq_4bit": "same", "allspark.w8a16": "untried",
    }  # fmt: skip
    stand_in.tell(other, HOPPER | {"norm.rms_norm": {"does": "ok", "case": {"digest": "e" * 32}}})
    completed = verify(tmp_path, "sm90", *FEW, "--compare", str(other))
    assert completed.returncode == 5
    assert "1 of 1 outputs differ" in completed.stdout
    assert "1 identical, 1 different, 1 not tried" in completed.stderr


def test_native_forbids_the_drivers_compiler_and_says_so(tmp_path: Path, result: Path) -> None:
    reason = "it needs code that …, which --native forbids (CUDA_DISABLE_PTX_JIT=1)"
    waiting = {"machete.gptq_4bit": {"does": "failed", "outcome": {"reason": reason}}}
    stand_in.tell(result, HOPPER | waiting)
    completed = verify(tmp_path, "sm90", *FEW, "--native", "--json")
    assert completed.returncode == 5
    assert json.loads(completed.stdout)["native"] is True
    assert f"machete.gptq_4bit: {reason}" in completed.stderr
    assert "hint: build it with --native" in completed.stderr
    assert {call["jit"] for call in stand_in.seen(result)} == {"1"}


def test_native_compared_forbids_it_for_this_result_alone_and_shows_both_first_calls(
    tmp_path: Path, result: Path
) -> None:
    other = stand_in.make(
        tmp_path / "other", HOPPER | {"*": {"does": "ok", "outcome": {"first_ms": 20300.0}}}
    )
    completed = verify(tmp_path, "sm90", *FEW, "--native", "--compare", str(other), "--json")
    assert completed.returncode == 0, completed.stderr
    document = json.loads(completed.stdout)
    assert document["native"] is True
    assert document["checks"][0]["first_ms"] == [12.0, 20300.0]
    assert {call["jit"] for call in stand_in.seen(result)} == {"1"}
    assert {call["jit"] for call in stand_in.seen(other)} == {None}
    completed = verify(tmp_path, "sm90", *FEW, "--native", "--compare", str(other))
    assert "12 ms" in completed.stdout
    assert "20.3 s" in completed.stdout


def test_compare_pairs_by_name_when_several_share_the_gpu(tmp_path: Path, result: Path) -> None:
    slow = {"norm.rms_norm": {"does": "ok", "wait": 1.5}}
    other = stand_in.make(tmp_path / "other", HOPPER | slow)
    completed = verify(tmp_path, "sm90", *FEW, "--compare", str(other), "--together", "3", "--json")
    assert completed.returncode == 0, completed.stderr
    document = json.loads(completed.stdout)
    assert sorted(each["likeness"] for each in document["checks"]) == ["same", "same", "untried"]
    assert {each["sentence"] for each in document["checks"] if each["likeness"] == "same"} == {
        "1 of 1 outputs identical"
    }


def test_compare_refuses_a_junit_report_before_anything_runs(tmp_path: Path, result: Path) -> None:
    completed = verify(tmp_path, "sm90", *FEW, "--compare", str(result), "--junit", "junit.xml")
    assert completed.returncode == 2
    assert "--compare and --junit do not go together" in completed.stderr
    assert not stand_in.seen(result)


def test_a_run_ends_when_its_time_is_over(tmp_path: Path, result: Path) -> None:
    stand_in.tell(result, HOPPER | {"machete.gptq_4bit": {"does": "hang"}})
    completed = verify(tmp_path, "sm90", *FEW, "--time", "5", "--json")
    document = json.loads(completed.stdout)
    reasons = {
        each["check"]: each.get("reason") for each in document["checks"] if each["status"] == "skipped"
    }
    assert reasons["machete.gptq_4bit"] == "the time of the whole run was over"


def test_the_list_says_what_each_check_proves(tmp_path: Path) -> None:
    completed = verify(tmp_path, "--list", "sm80", "--only", "flash_attention", "--json")
    expected = {each["check"]: each["expected"]["sm80"] for each in json.loads(completed.stdout)["checks"]}
    assert expected["flash_attention.fa2"] == "ok"
    assert expected["flash_attention.fa3"] == expected["flash_attention.fa3_fp8"] == "unsupported"
    completed = verify(
        tmp_path, "--list", "sm80", "--only", "flash_attention.fa3", "--release", "0.11.2", "--json"
    )
    assert json.loads(completed.stdout)["checks"][0]["expected"] == {"sm80": "ok"}


def bare(folder: Path, result: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The runner that needs nothing installed: `-S` hides every package of this environment."""
    command = [
        sys.executable, "-S", "-m", "vllm_variants.verify", "--python", str(result / "bin" / "python"),
        "--sm", "sm90", "--release", "0.13.0", "--jsonl", "out.jsonl", *FEW, *arguments,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_bare_runner_checks(tmp_path: Path, result: Path) -> None:
    completed = bare(tmp_path, result)
    assert completed.returncode == 0, completed.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    assert "2 ok, 1 rightly unsupported" in completed.stdout
    stand_in.tell(result, HOPPER | {"machete.gptq_4bit": {"does": "crash"}})
    completed = bare(tmp_path, result)
    assert completed.returncode == 5
    assert "machete.gptq_4bit: its process crashed (SIGSEGV)" in completed.stdout


def test_the_bare_runner_knows_the_same_options(tmp_path: Path, result: Path) -> None:
    completed = bare(
        tmp_path, result, "--native", "--seed", "7", "--together", "2", "--time", "60", "--ahead", "1"
    )
    assert completed.returncode == 0, completed.stderr
    assert "seed 7" in completed.stdout
    assert {(call["jit"], call["seed"]) for call in stand_in.seen(result)} == {("1", "7")}
    assert bare(tmp_path, result, "--time", "soon").returncode == 2


def test_the_bare_runner_compares(tmp_path: Path, result: Path) -> None:
    other = stand_in.make(tmp_path / "other", HOPPER)
    completed = bare(tmp_path, result, "--against", str(other / "bin" / "python"))
    assert completed.returncode == 0, completed.stderr
    assert "2 identical, 1 not tried" in completed.stdout
