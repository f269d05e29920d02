"""`release add` and its checkout: what a person edits there meanwhile, and what a failing step says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_variants import data
from vllm_variants.errors import Error, UsageError
from vllm_variants.maintain import releases, resolution
from vllm_variants.maintain.resolution import Resolution
from vllm_variants.model import matrix
from vllm_variants.model.variants import Release
from vllm_variants.system.process import CompletedCommand

ROWS = matrix.load()
OPTIONS = releases.Options(signatures=False)


def say(line: str) -> None:
    pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout of two files."""
    (tmp_path / "variants.toml").write_text((data.root() / "variants.toml").read_text())
    (tmp_path / "notes").write_text("old")
    return tmp_path


@pytest.fixture
def add(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], releases.Added]:
    """Add a release; one step of it changes the copy's variants.toml, while a person does something."""

    def added(meanwhile: Callable[[], object]) -> releases.Added:
        def declare(copy: Path, *rest: Any) -> tuple[Release, list[Resolution]]:
            meanwhile()
            with (copy / "variants.toml").open("a") as file:
                file.write("# more\n")
            (copy / "new").write_text("made")
            return ROWS.default, []

        monkeypatch.setattr(releases, "_declare", declare)
        monkeypatch.setattr(releases, "_run", lambda *arguments: "")
        monkeypatch.setattr(releases, "_derive", lambda *arguments: None)
        return releases.add(root, "99.0.0", OPTIONS, say)

    return added


def test_what_a_person_edits_meanwhile_stays(
    root: Path, add: Callable[[Callable[[], object]], releases.Added]
) -> None:
    def meanwhile() -> None:
        (root / "notes").write_bytes(b"edited \xff")
        (root / "another").write_text("of a person")

    assert add(meanwhile).files == ("new", "variants.toml")
    assert (root / "notes").read_bytes() == b"edited \xff"
    assert (root / "new").read_text() == "made"
    assert (root / "variants.toml").read_text().endswith("# more\n")


@pytest.mark.parametrize("name", ["variants.toml", "new"])
def test_a_file_that_both_change_ends_it_and_is_the_persons(
    name: str, root: Path, add: Callable[[Callable[[], object]], releases.Added]
) -> None:
    before = {path.name: path.read_text() for path in root.iterdir()}
    with pytest.raises(Error, match=f"nothing was added: .*/{name} was changed while"):
        add(lambda: (root / name).write_text("of a person"))
    assert {path.name: path.read_text() for path in root.iterdir()} == before | {name: "of a person"}


def test_a_step_that_fails_says_all_that_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "no wheel of a\nerror: uv found none; its reason is above\nhint: name another\n"
    monkeypatch.setattr(releases.process, "capture", lambda *_, **__: CompletedCommand(1, "", words))
    said: list[str] = []
    with pytest.raises(Error) as failure:
        releases._run(said.append, tmp_path, "lock", "99.0.0")
    assert said == ["no wheel of a"]
    message = "nothing was added: `lock 99.0.0` failed: uv found none; its reason is above"
    assert (failure.value.message, failure.value.hint) == (message, "name another")


@pytest.mark.parametrize("python", ["3", "3.12.4", "python3.12", ""])
def test_a_python_that_no_wheel_is_made_for_is_refused(root: Path, python: str) -> None:
    with pytest.raises(UsageError, match="is no Python that wheels are made for"):
        releases.add(root, "99.0.0", releases.Options(python), say)


def test_a_version_has_one_spelling(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`vllm==0.33` is 0.33.0: two releases would be one."""
    found = Resolution("x86_64-linux", {"vllm": "0.33.0", "torch": "2.14.0"}, {})
    monkeypatch.setattr(resolution, "resolve", lambda *arguments: found)
    with pytest.raises(UsageError, match=r"the index has no vLLM 0\.33 by that name, but 0\.33\.0"):
        releases.add(root, "0.33", OPTIONS, say)
