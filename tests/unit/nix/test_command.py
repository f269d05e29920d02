"""What Nix is configured to do, which Nix will do, and what its errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_variants.nix.command import Configuration, Nix, first_error, new_enough


def configured(**settings: object) -> Configuration:
    return Configuration(
        {
            "system": "x86_64-linux",
            "extra-platforms": ["i686-linux"],
            "system-features": ["kvm", "big-parallel"],
            "builders": "",
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
    )


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("nix (Nix) 2.18.0", True),
        ("nix (Nix) 2.26.3", True),
        ("nix (Nix) 2.36.0pre20260904_0765ffa", True),
        ("nix (Lix, like Nix) 2.91.1", True),
        ("nix (Determinate Nix 3.8.5) 2.30.2", True),
        ("nix (Nix) 2.17.1", False),
        ("nix (Nix) 2.8.0", False),
        ("", False),
    ],
)
def test_versions_that_the_pinned_nixpkgs_takes(version: str, fits: bool) -> None:
    assert new_enough(version) is fits


def test_this_machine_builds_for_its_systems_with_its_features() -> None:
    here = configured()
    assert here.builds("x86_64-linux", ["big-parallel", "kvm"])
    assert here.builds("i686-linux")
    assert not here.builds("aarch64-linux")
    assert not here.builds("x86_64-linux", ["big-parallel", "cuda"])
    assert not configured(system_features=[]).builds("x86_64-linux", ["big-parallel"])


@pytest.mark.parametrize(
    ("line", "builds"),
    [
        ("ssh-ng://far aarch64-linux - 4 1 big-parallel", True),
        ("ssh-ng://far x86_64-linux,aarch64-linux /key 4 1 kvm,big-parallel - -", True),
        ("ssh-ng://far aarch64-linux - 4 1 - big-parallel", True),
        ("ssh-ng://far aarch64-linux", False),
        ("ssh-ng://far - - - - big-parallel", False),
        ("ssh-ng://far x86_64-linux - 4 1 big-parallel", False),
        ("ssh-ng://one x86_64-linux ; ssh-ng://far aarch64-linux - 4 1 big-parallel", True),
        ("ssh-ng://one x86_64-linux\nssh-ng://far aarch64-linux - 4 1 big-parallel", True),
    ],
)
def test_remote_builders_are_read_as_nix_reads_them(line: str, builds: bool) -> None:
    assert configured(builders=line).builds("aarch64-linux", ["big-parallel"]) is builds


def test_builders_may_stand_in_a_file(tmp_path: Path) -> None:
    machines = tmp_path / "machines"
    machines.write_text("# ours\n\nssh-ng://far aarch64-linux - 4 1 big-parallel\n")
    assert configured(builders=f"@{machines}").builds("aarch64-linux", ["big-parallel"])
    assert configured(builders=f"@{tmp_path / 'none'}").machines == ()


@given(st.text())
def test_no_line_of_builders_is_too_strange(text: str) -> None:
    if "@" not in text:
        configured(builders=text).builds("x86_64-linux", ["cuda"])


def test_options_go_with_every_call_and_the_store_only_where_it_is_meant() -> None:
    nix = Nix("nix", "path:/f", (("nixpkgs", "path:/n"),), (("sandbox", "false"),), "ssh-ng://far", "b")
    line = " ".join(nix.command("build", "x"))
    assert "--option sandbox false" in line
    assert "--store ssh-ng://far --eval-store auto" in line
    assert "--builders b" in line
    assert "--store" not in " ".join(nix.command("eval", "x", remote=False))
    assert nix.flake_options() == ["--no-write-lock-file", "--override-input", "nixpkgs", "path:/n"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "error:\n       … while calling\n\n       error: attribute 'sm75' missing\n       at x:1",
            "attribute 'sm75' missing",
        ),
        ("\x1b[31;1merror:\x1b[0m unable to download", "unable to download"),
        ("warning: a\nno error here", "warning: a"),
        ("", ""),
    ],
)
def test_the_innermost_error_is_the_one_that_tells(text: str, sentence: str) -> None:
    assert first_error(text) == sentence
