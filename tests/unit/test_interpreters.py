"""Finding the Python of a release: PATH first, then pyenv, never one that is not what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vllm_variants.errors import MissingError, UsageError
from vllm_variants.machine import interpreters
from vllm_variants.system import uv

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
HERE = Path(sys.executable).resolve()


@pytest.fixture(autouse=True)
def nothing_but_what_a_test_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.setattr(interpreters, "_managed_by_uv", lambda minor: None)
    (tmp_path / "bin").mkdir()


def put(folder: Path, name: str, target: Path | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(target, Path):
        (folder / name).symlink_to(target)
    else:
        (folder / name).write_text(target)
        (folder / name).chmod(0o755)


def test_one_on_path_is_found_by_its_real_place(tmp_path: Path) -> None:
    put(tmp_path / "bin", "python3", HERE)
    interpreter = interpreters.find(MINOR)
    assert (interpreter.path, interpreter.origin) == (HERE, "on PATH")
    assert interpreter.version.startswith(f"{MINOR}.")


def test_pyenv_is_asked_behind_its_shims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "opt" / "pyenv"
    put(root / "shims", "python3", "#!/bin/sh\nexit 1\n")
    put(root / "versions" / f"{MINOR}.1" / "bin", "python", HERE)
    monkeypatch.setenv("PATH", str(root / "shims"))
    assert interpreters.find(MINOR).origin == "under pyenv"


@pytest.mark.parametrize("lie", ["#!/bin/sh\nexit 0\n", "#!/bin/sh\necho '[1, 2]'\n", "not a program"])
def test_what_is_no_such_python_is_passed_over(tmp_path: Path, lie: str) -> None:
    put(tmp_path / "bin", f"python{MINOR}", lie)
    with pytest.raises(MissingError) as caught:
        interpreters.find(MINOR)
    assert f"{uv.program()} python install {MINOR}" in str(caught.value)


def test_one_that_does_not_answer_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "_PATIENCE", 3.0)
    put(tmp_path / "bin", f"python{MINOR}", "#!/bin/sh\nexec /bin/sleep 60\n")
    put(tmp_path / "bin", "python3", f'#!/bin/sh\necho \'["{MINOR}.1", "CPython", false]\'\n')
    assert interpreters.find(MINOR).path == tmp_path / "bin" / "python3"


def test_another_minor_version_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path / "bin", "python3", HERE)
    with pytest.raises(MissingError, match=r"no Python 3\.99 on PATH"):
        interpreters.find("3.99")


def test_the_one_asked_for_must_be_right(tmp_path: Path) -> None:
    assert interpreters.find(MINOR, HERE).origin == "asked for"
    with pytest.raises(UsageError, match=r"is not a CPython 3\.99"):
        interpreters.find("3.99", HERE)
