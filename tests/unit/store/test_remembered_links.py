"""Links: remembered before they are made, forgotten once they are gone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from stocking import FIRST, SECOND, make, names, removed

from vllm_variants.errors import ResourceError
from vllm_variants.store import Store
from vllm_variants.system import atomic
from vllm_variants.system import links as links_module


def test_a_link_that_cannot_be_remembered_is_not_made(here: Store, tmp_path: Path) -> None:
    result = make(here)
    (here.root / "links").write_text("a file")
    with pytest.raises(ResourceError, match="cannot be made"):
        here.link(result, tmp_path / "result")
    assert not (tmp_path / "result").is_symlink()


def test_a_full_disk_while_a_link_is_remembered_is_a_sentence(
    here: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make(here)

    def full(link: Path, destination: Path) -> None:
        raise OSError(28, "No space left on device", str(link))

    monkeypatch.setattr(atomic, "symlink", full)
    with pytest.raises(ResourceError, match=r"was not made: No space left on device"):
        here.link(result, tmp_path / "result")
    assert not (tmp_path / "result").is_symlink()


def test_a_link_is_remembered_before_it_is_made(
    here: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, a build leaves a memory that gc forgets."""
    result = make(here)

    def killed(link: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(links_module, "point", killed)
    with pytest.raises(KeyboardInterrupt):
        here.link(result, tmp_path / "result")
    assert len(names(here.root / "links")) == 1
    assert removed(here) == [FIRST]
    assert names(here.root / "links") == []


def test_a_link_that_is_just_being_made_is_not_forgotten(
    here: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make(here)
    point = links_module.point
    collecting = threading.Thread(target=here.gc)

    def slowly(link: Path, target: Path) -> None:
        collecting.start()
        collecting.join(timeout=0.5)
        point(link, target)

    monkeypatch.setattr(links_module, "point", slowly)
    with here.lock(FIRST, lambda: None):
        here.link(result, tmp_path / "result")
    collecting.join(timeout=20)
    assert removed(here) == []
    assert len(names(here.root / "links")) == 1


def test_a_link_to_an_entry_that_is_built_anew_keeps_it(here: Store, tmp_path: Path) -> None:
    """Between the removal of a damaged entry and its successor the link is broken, not gone."""
    make(here, FIRST, tmp_path / "result")
    here.path(FIRST).rename(tmp_path / "elsewhere")
    assert removed(here) == []
    make(here)
    assert removed(here) == []
    assert (tmp_path / "result").exists()


def test_a_link_that_cannot_be_looked_at_keeps_everything(
    here: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here, FIRST, tmp_path / "result")
    make(here, SECOND)
    look = Path.is_symlink

    def refused(self: Path) -> bool:
        if self == tmp_path / "result":
            raise PermissionError(13, "Permission denied", str(self))
        return look(self)

    monkeypatch.setattr(Path, "is_symlink", refused)
    with pytest.raises(ResourceError, match="may keep a result: Permission denied"):
        here.gc()
    assert [entry.path.name for entry in here.entries()] == [FIRST, SECOND]
