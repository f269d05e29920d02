"""Detection, on recorded machines: which variant, and the reason for every accept and reject."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_variants.errors import InputError, UnsupportedError
from vllm_variants.machine import gpus
from vllm_variants.machine.detection import Detection, detect
from vllm_variants.machine.gpus import Machine
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability

MACHINES = Path(__file__).parents[2] / "machines"
MATRIX = matrix.load()


def recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> Detection:
    monkeypatch.setenv(gpus.RECORDED, str(MACHINES / f"{name}.json"))
    return detect(gpus.machine(), MATRIX, MATRIX.default)


@pytest.mark.parametrize(
    ("name", "shorts"),
    [
        ("h100", ["sm90"]),
        ("l40s", ["sm89"]),
        ("mixed", ["sm89", "sm86"]),
        ("gb300", ["sm100-arm64"]),
        ("b300", ["sm100"]),
        ("one-of-two", ["sm80"]),
    ],
)
def test_a_machine_gets_its_variants(name: str, shorts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [v.short for v in recorded(name, monkeypatch).require()] == shorts


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("old-driver", "needs driver 560 or later and this host has 535.183.01"),
        ("pascal", "no variant serves GPU 0, Tesla P100-PCIE-16GB (6.0): the nearest is sm70"),
        ("a100-arm", "it is for x86_64-linux and this host is aarch64-linux"),
        ("gb10", "the nearest is sm120, but it is for x86_64-linux"),
        ("no-driver", "no NVIDIA driver is installed"),
        ("no-gpu", "it sees no GPU"),
    ],
)
def test_a_machine_without_a_variant_is_told_why(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        recorded(name, monkeypatch).require()
    assert reason in str(caught.value)


def test_every_variant_gets_a_verdict_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in MACHINES.glob("*.json"):
        found = recorded(path.stem, monkeypatch)
        for gpu in found.gpus:
            assert [v.variant.short for v in gpu.candidates] == list(MATRIX.variants)
            assert all(v.reason for v in gpu.candidates)


def test_a_gpu_takes_the_highest_variant_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """sm80 and sm86 images also run on 8.9, but sm89 is built for it."""
    verdicts = {v.variant.short: v for v in recorded("l40s", monkeypatch).gpus[0].candidates}
    assert [short for short, v in verdicts.items() if v.accepted] == ["sm80", "sm86", "sm89"]
    assert "8.6 images run on 8.9" in verdicts["sm86"].reason
    assert verdicts["sm90"].reason == "code for 9.0 never runs on 8.9"


def test_a_served_capability_says_what_that_means(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recorded("gb300", monkeypatch).gpus[0].chosen
    assert chosen is not None
    assert "those with an `a` suffix do not" in chosen.reason


def test_a_machine_survives_its_own_json(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = recorded("mixed", monkeypatch).machine
    assert Machine.from_dict(machine.as_dict()) == machine


GPU = {"index": 0, "name": "H100", "capability": "9.0", "memory": 1, "uuid": "GPU-1"}
HOST = {"system": "x86_64-linux", "driver": "580.82.07", "gpus": [GPU], "problem": None}


def test_the_small_recording_is_whole() -> None:
    assert Machine.from_dict(HOST).as_dict() == HOST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"machine": {"gpus": 1}}',
        '{"machine": 1}',
        "[" * 100_000,
        *(json.dumps({**HOST, key: wrong}) for key, wrong in [
            ("driver", 580), ("driver", ["580"]), ("system", None), ("gpus", {"a": GPU}), ("gpus", "x"),
            ("gpus", [1]), ("problem", 7),
        ]),
        *(json.dumps({**HOST, "gpus": [{**GPU, key: wrong}]}) for key, wrong in [
            ("index", "0"), ("index", True), ("name", None), ("capability", 9.0), ("capability", "x"),
            ("memory", "80 GB"), ("memory", 1.5), ("uuid", 4), ("mig", "MIG-aaaa"),
        ]),
    ],
)  # fmt: skip
def test_a_file_that_records_no_machine_is_refused(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text)
    monkeypatch.setenv(gpus.RECORDED, str(path))
    with pytest.raises(InputError, match="no recorded machine"):
        gpus.machine()


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2", [2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("GPU-00000002,GPU-00000000", [2, 0]),
        ("GPU-00000002,GPU-00000002,GPU-00000000", []),  # a device twice leaves none
        ("GPU-00000002,GPU-0000000", [2]),
        ("GPU-0000000", []),  # the beginning of three ids
        ("GPU-", []),
        ("GPU-00000002,0", [2]),  # the first name decides whether all are ids
        ("1,GPU-00000002", [1]),
        ("1,7,0", [1]),  # nothing after an unknown one
        ("1,,2", [1]),
        ("1,1", []),
        ("2,01,2", []),
        ("-1", []),
        ("0,-1,2", [0]),
        ("1x,2 cards", [1, 2]),  # as strtoul reads them
        ("none", []),
        ("NoDevFiles", []),
        ("MIG-00000000-1", []),
    ],
)
def test_cuda_visible_devices_leaves(
    chosen: str | None, left: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gpus.RECORDED, str(MACHINES / "mixed.json"))
    assert [gpu.index for gpu in gpus.visible(gpus.machine().gpus, chosen)] == left


@pytest.mark.parametrize(
    ("chosen", "devices"),
    [
        (None, ["0", "1"]),
        ("0", ["0"]),
        ("MIG-aaaa", ["MIG-aaaa"]),
        ("MIG-bbbb,MIG-aaaa", ["MIG-bbbb"]),  # a process uses one instance
        ("MIG-bbb", []),  # no beginnings
        ("MIG-cccc,1", []),
        ("MIG-aaaa,MIG-aaaa", []),
        ("GPU-00000001", ["1"]),
    ],
)
def test_a_mig_instance_is_named_by_its_id(chosen: str | None, devices: list[str]) -> None:
    whole = gpus.Gpu(1, "NVIDIA H100", Capability(9, 0), 80 << 30, "GPU-00000001")
    divided = replace(whole, index=0, uuid="GPU-00000000", mig=("MIG-aaaa", "MIG-bbbb"))
    assert [gpu.device for gpu in gpus.visible((divided, whole), chosen)] == devices
    machine = Machine("x86_64-linux", "580.82.07", (divided, whole))
    assert Machine.from_dict(machine.as_dict()) == machine
    assert "mig" not in whole.as_dict()


@pytest.mark.parametrize(("name", "noted"), [("one-of-two", True), ("h100", False), ("no-driver", False)])
def test_a_driver_that_cannot_compile_ptx_is_noted(
    name: str, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recorded(name, monkeypatch)
    sentence = found.reservation() or ""
    assert (
        "driver 570.133.07 runs this release, but PTX of CUDA 12.9 is compiled by 575" in sentence
    ) == noted
    assert found.as_dict()["reservation"] == (sentence or None)
