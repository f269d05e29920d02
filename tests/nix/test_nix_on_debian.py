"""The script that gets a Nix for these tests: what it refuses, in words, and what it never names."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

SCRIPT = ROOT / "tests" / "nix" / "nix-on-debian.sh"


def run(prefix: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path) if path else "/usr/bin:/bin"}
    return subprocess.run(
        ["/bin/sh", SCRIPT, prefix], env=environment, capture_output=True, text=True, check=False
    )


def fake_debian(folder: Path, *, answers: bool) -> Path:
    """Programs of a Debian whose apt knows a mirror that never answers, or knows none."""
    tools = folder / "bin"
    tools.mkdir()
    for name in ("sh", "mkdir", "dirname", "mktemp", "rm", "sed", "cat"):
        (tools / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    address = """echo "'http://mirror.example/debian/dists/$VERSION_CODENAME/InRelease' x 0" """
    apt = f""". /etc/os-release
        case "$*" in
          *print-uris*) {address if answers else ":"} ;;
          *) echo "E: no route to host"; exit 100 ;;
        esac"""
    scripts = {"dpkg": "echo amd64", "dpkg-deb": "exit 0", "apt-get": apt}
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    return tools


def test_a_nix_that_is_there_is_left_alone(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nix"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho nix 2.26\n")
    program.chmod(0o755)
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, "nix 2.26\n")


def test_a_relative_prefix_is_refused() -> None:
    done = run("here")
    assert done.returncode == 1
    assert done.stderr == "no Nix for the tests: PREFIX must be an absolute path, not here\n"


def test_another_system_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path / "prefix", path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "no Nix for the tests: this is not Debian (no apt-get)\n"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (False, "apt's sources name no Debian mirror for "),
        (True, "Debian's mirror does not answer: E: no route to host"),
    ],
)
def test_without_network_it_says_why_and_leaves_nothing(tmp_path: Path, answers: bool, reason: str) -> None:
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        pytest.skip("only where Debian's archive keys are does the script get as far as the network")
    done = run(tmp_path / "made" / "prefix", path=fake_debian(tmp_path, answers=answers))
    assert done.returncode == 1
    assert done.stderr.startswith(f"no Nix for the tests: {reason}")
    assert list((tmp_path / "made").iterdir()) == []


def test_it_names_no_host() -> None:
    """The mirror is the one that this machine's own apt uses."""
    assert not re.search(r"https?://|\w+\.(?:org|com|net)\b", SCRIPT.read_text())
