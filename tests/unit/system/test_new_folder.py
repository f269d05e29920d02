"""A folder appears whole, and never in the place of something that somebody made at the last moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_variants.errors import Interrupted, UsageError
from vllm_variants.system import new_folder


def folder(path: Path) -> None:
    path.mkdir()
    (path / "theirs").write_text("theirs")


@pytest.mark.parametrize("make", [folder, lambda path: path.write_text("theirs")], ids=["folder", "file"])
def test_what_appears_between_the_last_look_and_the_rename_exists_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object]
) -> None:
    to, look = tmp_path / "to", os.path.lexists

    def then_made(path: Path) -> bool:
        found = look(path)
        make(to)
        return found

    with pytest.raises(UsageError, match="exists already"), new_folder.aside(to) as aside:
        (aside / "ours").write_text("ours")
        monkeypatch.setattr(os.path, "lexists", then_made)
        new_folder.publish(aside, to)

    assert (to if to.is_file() else to / "theirs").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [to]


def test_ctrl_c_again_while_it_is_removed_leaves_nothing_of_it(
    tmp_path: Path, ctrl_c_at_removal: None
) -> None:
    with pytest.raises(Interrupted), new_folder.aside(tmp_path / "to") as aside:
        (aside / "half").write_text("")
        raise Interrupted
    assert list(tmp_path.iterdir()) == []
