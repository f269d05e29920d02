"""Building: nothing half-done is seen, and a disk that refuses is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from stocking import FIRST, SECOND, make, names

from vllm_variants.errors import Error, Interrupted, ResourceError
from vllm_variants.store import Store, disk
from vllm_variants.system import atomic


def test_a_build_sweeps_what_killed_ones_left_and_nothing_that_is_held(here: Store) -> None:
    for entry in (FIRST, SECOND):
        (here.root / "building" / f"{entry}.killed").mkdir(parents=True)
    notes = here.root / "building" / "notes.txt"
    notes.write_text("mine")
    third = FIRST.replace("0", "a", 1)
    with here.lock(third, lambda: None), here.building(third) as held:
        (held / "half").write_text("")
        with here.lock(FIRST, lambda: None), here.building(FIRST) as folder:
            assert names(here.root / "building") == sorted([held.name, folder.name, notes.name])
            assert (held / "half").exists()


def test_ctrl_c_again_while_a_build_is_removed_leaves_nothing_of_it(
    here: Store, ctrl_c_at_removal: None
) -> None:
    with pytest.raises(Interrupted), here.lock(FIRST, lambda: None), here.building(FIRST) as folder:
        (folder / "half").write_text("")
        raise Interrupted
    assert names(here.root / "building") == []


def test_a_result_is_on_the_disk_before_it_is_seen(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename, folder = disk.sync_file_system, Path.rename, atomic.sync_folder
    monkeypatch.setattr(disk, "sync_file_system", lambda tree: (order.append("bytes"), sync(tree))[1])
    monkeypatch.setattr(
        Path, "rename", lambda self, target: (rename(self, target), order.append("rename"))[0]
    )
    monkeypatch.setattr(atomic, "sync_folder", lambda path: (order.append(path.name), folder(path))[1])
    make(here)
    assert order == ["bytes", "rename", "store"]


def test_a_disk_that_refuses_to_keep_the_bytes_publishes_nothing(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(tree: Path) -> None:
        raise OSError(5, "Input/output error", str(tree))

    monkeypatch.setattr(disk, "sync_file_system", refused)
    with pytest.raises(ResourceError, match="Input/output error"):
        make(here)
    assert here.find(FIRST) is None
    assert names(here.root / "building") == []


def test_a_lock_that_cannot_be_made_is_a_sentence(here: Store) -> None:
    (here.root / "locks" / FIRST).mkdir(parents=True)
    with pytest.raises(ResourceError, match="cannot be made: Is a directory"), here.lock(FIRST, lambda: None):
        pass


def test_a_store_whose_folder_is_a_file_is_a_sentence(here: Store) -> None:
    here.root.mkdir()
    (here.root / "store").write_text("")
    for work in (here.gc, here.entries, lambda: make(here)):
        with pytest.raises(Error, match="store"):
            work()
