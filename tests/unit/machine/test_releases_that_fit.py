"""Which releases serve a card and a machine: what `detect` lists, `--release newest` and the C library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_variants.builders.wheels.builder import Wheels
from vllm_variants.cli.build import _newest
from vllm_variants.cli.build_options import Via
from vllm_variants.errors import UnsupportedError
from vllm_variants.machine import c_library, gpus
from vllm_variants.machine.detection import detect, newest
from vllm_variants.machine.gpus import Machine
from vllm_variants.model import matrix
from vllm_variants.model.requests import Request
from vllm_variants.model.variants import Variant
from vllm_variants.store import Store

MACHINES = Path(__file__).parents[2] / "machines"
NEW, DEFAULT, OLD = "0.33.0", "0.13.0", "0.11.2"
ALL = matrix.load()
MATRIX = replace(ALL, releases={name: ALL.releases[name] for name in (NEW, DEFAULT, OLD)})


@pytest.fixture(autouse=True)
def c_library_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.39"))


def machine(name: str, monkeypatch: pytest.MonkeyPatch, driver: str | None = None) -> Machine:
    monkeypatch.setenv(gpus.RECORDED, str(MACHINES / f"{name}.json"))
    found = gpus.machine()
    return replace(found, driver=driver) if driver else found


def asked(word: str) -> Mapping[str, tuple[Variant, ...]]:
    """What `build WORD` means in each release that has it."""
    found = {}
    for name, release in MATRIX.releases.items():
        if word in MATRIX.of(release):
            found[name] = (MATRIX.of(release)[word],)
    return found


@pytest.mark.parametrize(
    ("name", "driver", "variants"),
    [
        ("h100", "580.82.07", {NEW: "sm90", DEFAULT: "sm90", OLD: "sm90"}),
        ("h100", "570.10", {NEW: None, DEFAULT: "sm90", OLD: "sm90"}),
        ("b300", "580.82.07", {NEW: "sm103", DEFAULT: "sm100", OLD: "sm100"}),
        ("gb300", "580.82.07", {NEW: "sm103-arm64", DEFAULT: "sm100-arm64", OLD: "sm100-arm64"}),
        ("gb10", "580.82.07", {NEW: "sm121-arm64", DEFAULT: None, OLD: None}),
        ("pascal", "580.82.07", {NEW: None, DEFAULT: None, OLD: None}),
    ],
)
def test_every_release_is_judged_for_a_card_newest_first(
    name: str, driver: str, variants: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = detect(machine(name, monkeypatch, driver), MATRIX, MATRIX.default)
    (card,) = found.gpus
    assert {f.release.name: f.variant and f.variant.short for f in card.releases} == variants
    assert [f.release.name for f in card.releases] == [NEW, DEFAULT, OLD]
    assert all(fit.reason for fit in card.releases)


def test_a_release_that_does_not_fit_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(machine("h100", monkeypatch, "570.10"), MATRIX, MATRIX.default)
    reasons = {fit.release.name: fit.reason for fit in found.gpus[0].releases}
    assert "needs driver 580 or later and this host has 570.10" in reasons[NEW]
    assert "built for exactly 9.0" in reasons[DEFAULT]


def test_wheels_that_need_a_newer_c_library_serve_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr("vllm_variants.machine.detection.host_system", lambda: "aarch64-linux")
    found = detect(machine("gb10", monkeypatch), MATRIX, MATRIX.default)
    reason = found.gpus[0].releases[0].reason
    assert reason == "the wheels of release 0.33.0 need glibc 2.34, this system has 2.31"
    with pytest.raises(UnsupportedError) as failure:
        found.require()
    assert failure.value.hint is None, "no release that could not be built is advised"
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.30"))
    serving = detect(machine("gb300", monkeypatch), MATRIX, MATRIX.default).gpus[0].releases[1]
    assert serving.variant, "Nix compiles it, with a C library of its own"


def test_a_variant_without_native_code_says_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(machine("gb10", monkeypatch), MATRIX, MATRIX.releases[NEW])
    assert "58 same-major, 55 family, 83 as PTX only" in found.gpus[0].releases[0].reason
    assert "none native" in found.gpus[0].releases[0].reason


@pytest.mark.parametrize(
    ("word", "driver", "release"),
    [
        ("sm90", "580.82.07", NEW),
        ("sm90", "575.51", DEFAULT),
        ("sm70", "580.82.07", DEFAULT),  # CUDA 13 has no Volta
        ("sm103", "580.82.07", NEW),
        ("sm90-arm64", "560.1", NEW),  # it is not this machine that will run it
    ],
)
def test_newest_is_the_newest_that_has_it_and_runs_here(
    word: str, driver: str, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert newest(machine("h100", monkeypatch, driver), MATRIX, asked(word)).name == release


def test_newest_asks_the_c_library_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    here = machine("h100", monkeypatch, "580.82.07")
    assert newest(here, MATRIX, asked("sm90")).name == DEFAULT
    assert newest(here, MATRIX, asked("sm90-arm64")).name == NEW  # which runs with another's


def test_where_no_release_fits_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError) as failure:
        newest(machine("h100", monkeypatch, "570.10"), MATRIX, asked("sm103"))
    text = str(failure.value)
    assert "release 0.33.0 (CUDA 13.0) needs driver 580 or later" in text
    assert "release 0.13.0 has no such variant; release 0.11.2 has no such variant" in text


def test_newest_is_one_that_the_builder_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine("h100", monkeypatch)
    assert _newest(["sm90"], [], MATRIX, Via.WHEELS).name == NEW
    assert _newest(["sm90"], [], MATRIX, Via.NIX).name == DEFAULT
    with pytest.raises(UnsupportedError, match=r"release 0\.33\.0 cannot be built with nix"):
        _newest(["sm103"], [], MATRIX, Via.NIX)


def test_where_every_release_refuses_a_card_for_its_driver_each_says_which_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine("old-driver", monkeypatch)
    with pytest.raises(UnsupportedError) as failure:
        _newest(["auto"], [], MATRIX, Via.WHEELS)
    assert "release 0.33.0 (CUDA 13.0) needs driver 580" in str(failure.value)
    assert "release 0.13.0 (CUDA 12.9) needs driver 560" in str(failure.value)
    machine("no-driver", monkeypatch)
    with pytest.raises(UnsupportedError, match=r"^no NVIDIA driver is installed [^;]*$"):
        _newest(["auto"], [], MATRIX, Via.WHEELS)


def test_where_no_release_fits_a_card_the_driver_is_not_called_a_missing_variant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.28"))
    here = machine("h100", monkeypatch, "570.10")
    monkeypatch.setattr(gpus, "machine", lambda: here)
    with pytest.raises(UnsupportedError) as failure:
        _newest(["auto"], [], MATRIX, Via.WHEELS)
    text = str(failure.value)
    assert "release 0.33.0 (CUDA 13.0) needs driver 580 or later and this host has 570.10" in text
    assert "the wheels of release 0.13.0 need glibc 2.31, this system has 2.28" in text
    assert "no such variant" not in text


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (("glibc", "2.34"), None),
        (("glibc", "2.100"), None),
        (("glibc", "2.31"), "the wheels of release 0.33.0 need glibc 2.34, this system has 2.31"),
        (("", ""), "the wheels need glibc 2.34, this system has another"),
    ],
)
def test_the_c_library_is_held_to_the_release(
    found: tuple[str, str], says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: found)
    assert c_library.problem(MATRIX.releases[NEW]) == says


def test_a_build_that_could_not_run_here_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr("vllm_variants.builders.wheels.builder.host_system", lambda: "x86_64-linux")
    release = MATRIX.releases[NEW]
    request = Request(MATRIX.of(release)["sm90"], release, tmp_path)
    said: list[str] = []
    with pytest.raises(UnsupportedError, match=r"need glibc 2\.34, this system has 2\.31"):
        Wheels(Store(tmp_path / "store")).build(request, said.append)
    assert said == []
    assert list(tmp_path.iterdir()) == []
