"""gc: what it takes, and that nobody else at work loses anything by it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from stocking import FIRST, SECOND, make, names, removed

from vllm_variants.model import results
from vllm_variants.store import Store, disk


def test_gc_leaves_a_build_under_way_alone(here: Store) -> None:
    with here.lock(FIRST, lambda: None), here.building(FIRST) as folder:
        assert removed(here) == []
        assert folder.exists()


def test_gc_looks_at_the_links_again_before_it_removes(
    here: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc is busy with the first entry while a build finds the second one and links it."""
    make(here, FIRST)
    found = make(here, SECOND)
    measure = disk.disk_use

    def meanwhile(tree: Path) -> tuple[int, int]:
        if tree.name == FIRST:
            with here.lock(SECOND, lambda: None):
                here.link(found, tmp_path / "result")
        return measure(tree)

    monkeypatch.setattr(disk, "disk_use", meanwhile)
    assert removed(here) == [FIRST]
    assert results.read(tmp_path / "result").path == found.path


def test_two_collections_at_once_share_the_work(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(here, FIRST)
    make(here, SECOND)
    measure, taken = disk.disk_use, []

    def meanwhile(tree: Path) -> tuple[int, int]:
        if not taken:
            taken.append(tree.name)
            other = threading.Thread(target=lambda: taken.extend(removed(here)))
            other.start()
            other.join()
        return measure(tree)

    monkeypatch.setattr(disk, "disk_use", meanwhile)
    assert [*removed(here), *taken[1:]] == [FIRST, SECOND]
    assert names(here.root / "store") == [] and names(here.root / "building") == []


def test_files_that_vanish_while_gc_removes_are_no_failure(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here)
    rmtree, calls = disk.shutil.rmtree, []

    def hasty(path: Path, **options: bool) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(2, "No such file or directory", str(path / "bin" / "python"))
        rmtree(path, **options)

    monkeypatch.setattr(disk.shutil, "rmtree", hasty)
    assert removed(here) == [FIRST]
    assert names(here.root / "building") == []


def test_what_gc_cannot_remove_is_told_and_the_rest_goes(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here, FIRST)
    make(here, SECOND)
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name == FIRST:
            raise PermissionError(1, "Operation not permitted", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    collected = here.gc()
    assert [gone.path.name for gone in collected.removed] == [SECOND]
    assert "Operation not permitted" in str(collected.failed[0])


def test_a_dry_run_says_the_same_and_removes_nothing(here: Store, tmp_path: Path) -> None:
    make(here, FIRST)
    make(here, SECOND, tmp_path / "result")
    left = here.root / "building" / f"{SECOND}.abc"
    left.mkdir()
    (tmp_path / "result").unlink()
    before = [names(here.root / folder) for folder in ("store", "building", "links")]
    told = here.gc(dry_run=True).removed
    assert [names(here.root / folder) for folder in ("store", "building", "links")] == before
    assert here.gc().removed == told
    assert {gone.path.name for gone in told} == {FIRST, SECOND, left.name}


def test_gc_never_removes_what_has_no_name_of_ours(here: Store) -> None:
    make(here)
    here.gc()
    strange = [
        here.root / "store" / "notes",
        here.root / "building" / ".txt",
        here.root / "building" / "notes.txt",
        here.root / "links" / "notes",
    ]
    (here.root / "links").mkdir()
    for path in strange:
        path.write_text("mine")
    (here.root / "store" / "folder").mkdir()
    loop = here.root / "store" / "loop"
    loop.symlink_to(loop)
    collected = here.gc()
    assert collected.removed == ()
    assert {kept.path for kept in collected.kept} == {*strange, here.root / "store" / "folder", loop}
    assert here.entries() == []
    assert all(path.read_text() == "mine" for path in strange)


def test_a_file_or_a_loop_in_an_entrys_place_is_damage_that_gc_removes(here: Store) -> None:
    (here.root / "store").mkdir(parents=True)
    here.path(FIRST).write_text("")
    here.path(SECOND).symlink_to(SECOND)
    assert [entry.result for entry in here.entries()] == [None, None]
    assert removed(here) == [FIRST, SECOND]
