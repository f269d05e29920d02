"""The folders of this user, where the environment says little or nonsense."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_variants.errors import MissingError
from vllm_variants.machine import interpreters
from vllm_variants.system import folders

FOLDERS = {
    "XDG_DATA_HOME": folders.data, "XDG_STATE_HOME": folders.state, "XDG_CACHE_HOME": folders.cache,
}  # fmt: skip


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know, as in a container that was started with a number."""
    for name in ("HOME", *FOLDERS):
        monkeypatch.delenv(name, raising=False)

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(("variable", "folder"), FOLDERS.items())
def test_a_user_without_a_home_is_told_which_variable_helps(
    variable: str, folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match="no home folder: HOME is not set") as refused:
        folder()
    assert variable in (refused.value.hint or "")
    monkeypatch.setenv(variable, "relative")  # which the specification has ignored
    with pytest.raises(MissingError):
        folder()
    monkeypatch.setenv(variable, "/given")
    assert folder() == Path("/given/vllm-variants")


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_a_home_that_moves_with_the_current_folder_is_refused(
    folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "home")
    with pytest.raises(MissingError, match="HOME is home"):
        folder()


@pytest.mark.usefixtures("nobody")
def test_an_interpreter_is_found_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    assert isinstance(list(interpreters._candidates("3.12")), list)
