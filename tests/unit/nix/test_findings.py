"""What doctor says about building from source."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_variants.model.findings import Finding, State
from vllm_variants.model.platforms import host_system
from vllm_variants.nix import findings as nix_findings
from vllm_variants.nix.command import Configuration, Nix

Usage = namedtuple("Usage", "total used free")
GB = 1_000_000_000


def findings(tmp_path: Path, trusted: int = 1, builds: int = 1, **settings: Any) -> dict[str, Finding]:
    nix = tmp_path / "nix"
    nix.write_text(f"#!/bin/sh\necho '{{\"trusted\":{trusted}}}'\n")
    nix.chmod(0o755)
    all_ = {
        "system": host_system(),
        "system-features": ["big-parallel"],
        "substituters": ["https://cache.nixos.org", "https://cache.nixos-cuda.org"],
        "build-dir": str(tmp_path),
        **{name.replace("_", "-"): value for name, value in settings.items()},
    }
    examined = nix_findings.before_build(Nix(str(nix), ""), Configuration(all_), builds)
    return {finding.about: finding for finding in examined}


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    free = [100 * GB]
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(200 * GB, 0, free[0]))
    yield free


def test_a_machine_that_has_all_is_given_no_hint(tmp_path: Path) -> None:
    examined = findings(tmp_path)
    assert all(finding.state is State.OK for finding in examined.values())
    assert all(finding.hint is None for finding in examined.values())


def test_every_variant_wants_its_room(tmp_path: Path, disk: list[int]) -> None:
    assert findings(tmp_path, builds=5)["Nix disk"].state is State.OK
    assert findings(tmp_path, builds=6)["Nix disk"].hint == "nix-collect-garbage -d"
    disk[0] = 10 * GB
    assert findings(tmp_path, builds=1)["Nix disk"].state is State.NOTE


@pytest.mark.parametrize(
    ("settings", "about", "words"),
    [
        ({"system_features": ["kvm"]}, "Nix features", "extra-system-features = big-parallel"),
        ({"substituters": []}, "Nix caches", "extra-substituters = https://cache.nixos.org"),
        ({"substituters": ["https://cache.nixos.org"]}, "Nix CUDA cache", "cache.nixos-cuda.org:"),
    ],
)
def test_what_lacks_has_its_hint(tmp_path: Path, settings: dict[str, Any], about: str, words: str) -> None:
    finding = findings(tmp_path, **settings)[about]
    assert finding.state is State.NOTE
    assert finding.hint is not None and words in finding.hint


def test_a_remote_builder_has_the_feature_too(tmp_path: Path) -> None:
    line = f"ssh-ng://far {host_system()} - 4 1 big-parallel"
    finding = findings(tmp_path, system_features=[], builders=line)["Nix features"]
    assert finding.state is State.OK
    assert "1 remote builder" in finding.text


def test_a_daemon_that_does_not_trust_is_told(tmp_path: Path) -> None:
    assert "ignores --builders" in findings(tmp_path, trusted=0)["Nix trust"].text
