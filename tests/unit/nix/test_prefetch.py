"""What `pin` asks of nix-prefetch-github and nix, and what it makes of strange answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_variants import data
from vllm_variants.errors import Error, ExitCode, MissingError, UsageError
from vllm_variants.model import matrix
from vllm_variants.nix import prefetch
from vllm_variants.nix.command import Nix

REV, HASH = "a" * 40, "sha256-" + "b" * 43 + "="
FOUND = prefetch.Revision(REV, HASH)


def program(folder: Path, name: str, answer: str) -> str:
    """A program that gives this answer, whatever it is asked."""
    path = folder / name
    (folder / f"{name}.answer").write_text(answer)
    path.write_text(f"#!/bin/sh\ncat {folder}/{name}.answer\n")
    path.chmod(0o755)
    return str(path)


STRANGE = ["", "garbage", "[]", "5", "null", "{}", "[" * 100_000]


@pytest.mark.parametrize(
    "answer",
    [*STRANGE, '{"rev":5}', json.dumps({"rev": 5, "hash": HASH}), json.dumps({"rev": REV, "hash": []})],
)
def test_a_strange_answer_of_nix_prefetch_github_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    program(tmp_path, "nix-prefetch-github", answer)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(Error, match="the output of nix-prefetch-github is not understood") as caught:
        prefetch.revision(REV)
    assert caught.value.exit_code is ExitCode.FAILED
    assert len(caught.value.message) < 200
    assert caught.value.hint == (
        "run `nix-prefetch-github --version`: another program of that name may be on PATH"
    )


def test_its_answer_is_a_commit_with_the_hash_of_its_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "nix-prefetch-github", json.dumps({"rev": REV, "hash": HASH}))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert prefetch.revision("26.05") == prefetch.Revision(REV, HASH, "26.05")


@pytest.mark.parametrize(
    "answer",
    [
        *STRANGE,
        '{"locked": 5, "path": "/x"}',
        json.dumps({"locked": {"narHash": HASH, "lastModified": "noon"}, "path": "/x"}),
        json.dumps({"locked": {"narHash": HASH, "lastModified": 1}, "path": 5}),
    ],
)
def test_strange_metadata_is_a_sentence(tmp_path: Path, answer: str) -> None:
    with pytest.raises(Error, match=r"^the output of nix is not understood"):
        prefetch.source(Nix(program(tmp_path, "nix", answer), ""), FOUND)


@pytest.mark.parametrize(
    "answer", [*STRANGE, '{"vllm": 1, "torch": "2", "cuda": []}', '{"vllm": "1", "torch": "2", "cuda": 5}']
)
def test_strange_versions_are_a_sentence(tmp_path: Path, answer: str) -> None:
    nix = Nix(program(tmp_path, "nix", answer), "")
    with pytest.raises(Error, match=r"^the output of nix is not understood"):
        prefetch.versions(nix, tmp_path, matrix.load().default, "x86_64-linux")


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 5000, "two\nlines"])
def test_what_is_no_name_is_a_sentence_of_one_short_line(name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a revision") as caught:
        prefetch.revision(name)
    assert len(caught.value.message) < 120
    assert "\n" not in caught.value.message


def test_pin_without_nix_says_what_it_needs_nix_for(tmp_path: Path) -> None:
    if not data.checkout():
        pytest.skip("pin is there in a checkout only")
    completed = subprocess.run(
        [sys.executable, "-m", "vllm_variants", "pin", "nixos-unstable"],
        env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert completed.returncode == 4, completed.stderr
    assert "there is no nix on PATH, and pin evaluates the new nixpkgs with it" in completed.stderr
    assert "install Nix: https://nixos.org/download" in completed.stderr
    assert "--via" not in completed.stderr


def test_without_nix_prefetch_github_the_hint_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(prefetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="there is no nix-prefetch-github"):
        prefetch.revision("26.05")
