"""The launcher: sets up its own environment with whatever a machine has, once, and fails in a sentence."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from vllm_variants import data
from vllm_variants.system import process

ROOT = data.checkout() or pytest.skip("the launcher is in a checkout only", allow_module_level=True)
TOOLS = ("sh", "readlink", "dirname", "cat", "rm", "cp", "mkdir", "wc", "tr", "flock", "sleep", "ls", "env")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose locks are empty and whose command line prints what it got: nothing to download."""
    root = tmp_path / "a checkout"
    (root / "locks").mkdir(parents=True)
    (root / "python" / "vllm_variants").mkdir(parents=True)
    shutil.copy(ROOT / "vllm-variants", root)
    for lock in ("tool", "tool-test"):
        (root / "locks" / f"{lock}.txt").write_text("# nothing\n")
    (root / "python" / "vllm_variants" / "__main__.py").write_text("import sys; print(sys.argv[1:])")
    return root


def path_with(tmp_path: Path, *programs: tuple[str, str]) -> str:
    """A PATH of the basic tools and these programs (name, what it stands for)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, target in [(tool, shutil.which(tool)) for tool in TOOLS] + list(programs):
        if target:
            (folder / name).symlink_to(target)
    return str(folder)


def start(checkout: Path, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": path, "HOME": str(checkout / "no-home")}
    return subprocess.run(
        [checkout / "vllm-variants", *arguments], env=env, capture_output=True, text=True, check=False
    )


def _system_python() -> str:
    for candidate in ("/usr/bin/python3", *(shutil.which(f"python3.{n}") or "" for n in range(14, 10, -1))):
        probe = "import sys; sys.exit(sys.version_info < (3, 11))"
        if (
            candidate
            and subprocess.run([candidate, "-c", probe], check=False, capture_output=True).returncode == 0
        ):
            return candidate
    pytest.skip("there is no Python of 3.11 or later outside pyenv's shims")


def test_it_sets_up_with_a_plain_python_and_then_no_more(checkout: Path, tmp_path: Path) -> None:
    path = path_with(tmp_path, ("python3", _system_python()))
    first = start(checkout, path, "list", "a b")
    assert (first.returncode, first.stdout) == (0, "['list', 'a b']\n"), first.stderr
    assert "setting up" in first.stderr
    second = start(checkout, path, "list")
    assert (second.stdout, second.stderr) == ("['list']\n", "")


def test_it_works_through_a_link_and_from_anywhere(checkout: Path, tmp_path: Path) -> None:
    path = path_with(tmp_path, ("python3", _system_python()))
    link = tmp_path / "vv"
    link.symlink_to(checkout / "vllm-variants")
    env = {"PATH": path, "HOME": "/"}
    told = subprocess.run([link, "x"], cwd="/", env=env, capture_output=True, text=True, check=True)
    assert told.stdout == "['x']\n"
    assert (checkout / ".venv").is_dir()


def test_two_first_starts_at_once_both_work(checkout: Path, tmp_path: Path) -> None:
    env = {"PATH": path_with(tmp_path, ("python3", _system_python())), "HOME": "/"}
    started = [
        subprocess.Popen(
            [checkout / "vllm-variants", str(n)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    told = [process.communicate(timeout=120) for process in started]
    assert [out for out, _ in told] == ["['0']\n", "['1']\n"]
    assert "".join(err for _, err in told).count("(once)") == 1


def test_a_changed_lock_is_installed_again(checkout: Path, tmp_path: Path) -> None:
    path = path_with(tmp_path, ("python3", _system_python()))
    start(checkout, path, "x")
    (checkout / "locks" / "tool.txt").write_text("# another nothing\n")
    assert "setting up" in start(checkout, path, "x").stderr
    assert start(checkout, path, "x").stderr == ""


@pytest.mark.parametrize("command", ["test", "lint"])
def test_commands_for_contributors_install_what_they_need_besides(
    checkout: Path, tmp_path: Path, command: str
) -> None:
    path = path_with(tmp_path, ("python3", _system_python()))
    start(checkout, path, "list")
    completed = start(checkout, path, command)
    assert "setting up .venv from locks/tool-test.txt" in completed.stderr
    assert (completed.stdout, start(checkout, path, "list").stderr) == (f"['{command}']\n", "")


def test_a_python_without_venv_and_pip_finds_a_pip(checkout: Path, tmp_path: Path) -> None:
    """Debian's python lacks ensurepip and pip; its python3-pip-whl package, or apt, has one."""
    if not list(Path("/usr/share/python-wheels").glob("pip-*.whl")):
        pytest.skip("no pip wheel of the distribution on this machine")
    bare = tmp_path / "bare-python"
    blocked = "import sys; sys.modules.update(ensurepip=None, pip=None)"
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(blocked)
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "block"} exec {_system_python()} "$@"\n')
    bare.chmod(0o755)
    told = start(checkout, path_with(tmp_path, ("python3", str(bare))), "x")
    assert (told.returncode, told.stdout) == (0, "['x']\n"), told.stderr


def test_without_python_and_uv_it_says_what_to_install(checkout: Path, tmp_path: Path) -> None:
    told = start(checkout, path_with(tmp_path), "list")
    assert told.returncode == 4
    assert "no uv and no Python of 3.11" in told.stderr
    assert "hint: install uv, or python3" in told.stderr


def test_a_broken_environment_is_made_again(checkout: Path, tmp_path: Path) -> None:
    path = path_with(tmp_path, ("python3", _system_python()))
    start(checkout, path, "x")
    for name in ("python", "python3"):
        (checkout / ".venv" / "bin" / name).unlink()
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    assert start(checkout, path, "y").stdout == "['y']\n"


def made(folder: Path) -> tuple[str, str]:
    """A wheel of one package, as a line of a lock without its hash, and the hash."""
    folder.mkdir()
    wheel = folder / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made/__init__.py", "")
        archive.writestr("made-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made\nVersion: 1.0\n")
        archive.writestr(
            "made-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("made-1.0.dist-info/RECORD", "made/__init__.py,,\n")
    return f"made @ {wheel.as_uri()}", hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.mark.parametrize("gone", ["made", "made/__init__.py", "made-1.0.dist-info"])
def test_a_package_that_was_taken_away_is_installed_again(checkout: Path, tmp_path: Path, gone: str) -> None:
    path = path_with(tmp_path, ("python3", _system_python()), ("uv", process.uv()))
    line, digest = made(tmp_path / "wheels")
    (checkout / "locks" / "tool.txt").write_text(f"{line} --hash=sha256:{digest}\n")
    assert start(checkout, path, "x").returncode == 0
    (taken,) = (checkout / ".venv").glob(f"lib/python3*/site-packages/{gone}")
    shutil.rmtree(taken) if taken.is_dir() else taken.unlink()

    again = start(checkout, path, "x")

    assert (again.returncode, again.stdout) == (0, "['x']\n"), again.stderr
    assert "something was taken away from .venv: making it again" in again.stderr
    assert taken.exists()
    assert start(checkout, path, "x").stderr == ""


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_wrong_hashes_are_not_blamed_on_the_network(checkout: Path, tmp_path: Path, installer: str) -> None:
    programs = [("python3", _system_python())]
    if installer == "uv":
        programs.append(("uv", process.uv()))
    line, _ = made(tmp_path / "wheels")
    (checkout / "locks" / "tool.txt").write_text(f"{line} --hash=sha256:{'0' * 64}\n")

    told = start(checkout, path_with(tmp_path, *programs), "x")

    if "neither pip nor ensurepip" in told.stderr:
        pytest.skip("no pip on this machine")
    assert (told.returncode, told.stdout) == (4, "")
    assert "hint: git checkout locks/tool.txt" in told.stderr
    assert "network" not in told.stderr


def test_a_lock_that_cannot_be_had_is_blamed_on_the_network(checkout: Path, tmp_path: Path) -> None:
    (checkout / "locks" / "tool.txt").write_text(
        f"made @ file:///nowhere/made-1.0-py3-none-any.whl --hash=sha256:{'0' * 64}\n"
    )
    path = path_with(tmp_path, ("python3", _system_python()), ("uv", process.uv()))

    told = start(checkout, path, "x")

    assert told.returncode == 4
    assert "hint: check the network" in told.stderr
    assert "nowhere" in told.stderr


@pytest.mark.parametrize("lacks", ["readlink", "dirname", "cat", "rm", "cp"])
def test_a_path_without_the_basic_tools_is_one_sentence(checkout: Path, tmp_path: Path, lacks: str) -> None:
    path = path_with(tmp_path, ("python3", _system_python()))
    (Path(path) / lacks).unlink()

    told = start(checkout, path, "x")

    assert told.returncode == 4
    assert told.stderr.startswith(
        f"error: there is no {lacks} on PATH ({path})\nhint: PATH=$PATH:/usr/bin:/bin"
    )


def test_a_folder_in_the_place_of_the_lock_file_is_one_sentence(checkout: Path, tmp_path: Path) -> None:
    (checkout / ".venv.lock").mkdir()

    told = start(checkout, path_with(tmp_path, ("python3", _system_python())), "x")

    assert told.returncode == 4
    assert told.stderr.splitlines() == [
        f"error: {checkout}/.venv.lock is a folder, and a file is needed there",
        f"hint: rmdir '{checkout}/.venv.lock'",
    ]
