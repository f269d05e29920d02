"""The store: what is seen, what gc takes, and that nobody else at work loses anything by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_variants import store
from vllm_variants.errors import Error, InputError, ResourceError
from vllm_variants.model import results
from vllm_variants.model.results import MANIFEST, DamagedError, Result
from vllm_variants.store import Store
from vllm_variants.system import atomic
from vllm_variants.system import links as links_module

FIRST = "0123456789abcdef-vllm-python312-cuda12_9-sm90-0.13.0"
SECOND = "fedcba9876543210-vllm-python312-cuda12_9-sm90-arm64-0.11.2"
FACTS = {
    "schema": 1,
    "variant": "vllm-python312-cuda12_9-sm90",
    "short": "sm90",
    "capability": "9.0",
    "system": "x86_64-linux",
    "release": "0.13.0",
    "builder": "wheels",
    "bytes": {"installed": 9, "result": 5},
}


@pytest.fixture
def here(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def fill(tree: Path) -> None:
    """Write a whole result into a folder."""
    (tree / MANIFEST).parent.mkdir(parents=True)
    (tree / MANIFEST).write_text(json.dumps(FACTS))
    (tree / "bin").mkdir()
    (tree / "bin" / "python").write_text("#!/bin/sh\n")
    (tree / "bin" / "python").chmod(0o755)


def make(where: Store, entry: str = FIRST, link: Path | None = None) -> Result:
    with where.lock(entry, lambda: None), where.building(entry) as folder:
        fill(folder)
        result = where.publish(folder, entry)
        if link:
            where.link(result, link)
    return result


def removed(where: Store) -> list[str]:
    return [gone.path.name for gone in where.gc().removed]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what gc takes ---------------------------------------------------------------------------------


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
    measure = store.disk_use

    def meanwhile(tree: Path) -> tuple[int, int]:
        if tree.name == FIRST:
            with here.lock(SECOND, lambda: None):
                here.link(found, tmp_path / "result")
        return measure(tree)

    monkeypatch.setattr(store, "disk_use", meanwhile)
    assert removed(here) == [FIRST]
    assert results.read(tmp_path / "result").path == found.path


def test_two_collections_at_once_share_the_work(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(here, FIRST)
    make(here, SECOND)
    measure, taken = store.disk_use, []

    def meanwhile(tree: Path) -> tuple[int, int]:
        if not taken:
            taken.append(tree.name)
            other = threading.Thread(target=lambda: taken.extend(removed(here)))
            other.start()
            other.join()
        return measure(tree)

    monkeypatch.setattr(store, "disk_use", meanwhile)
    assert [*removed(here), *taken[1:]] == [FIRST, SECOND]
    assert names(here.root / "store") == [] and names(here.root / "building") == []


def test_files_that_vanish_while_gc_removes_are_no_failure(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here)
    rmtree, calls = store.shutil.rmtree, []

    def hasty(path: Path, **options: bool) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(2, "No such file or directory", str(path / "bin" / "python"))
        rmtree(path, **options)

    monkeypatch.setattr(store.shutil, "rmtree", hasty)
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


# --- links -----------------------------------------------------------------------------------------


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


# --- damage ----------------------------------------------------------------------------------------


def written(text: str | bytes) -> Callable[[Path], None]:
    def damage(result: Path) -> None:
        (result / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def facts(**changed: object) -> Callable[[Path], None]:
    return written(json.dumps({**FACTS, **changed}))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no manifest": lambda result: (result / MANIFEST).unlink(),
    "a folder as manifest": lambda result: ((result / MANIFEST).unlink(), (result / MANIFEST).mkdir())[0],
    "a pipe as manifest": lambda result: ((result / MANIFEST).unlink(), os.mkfifo(result / MANIFEST))[0],
    "an empty manifest": written(""),
    "no JSON": written("{"),
    "no text": written(b"\xff\xfe"),
    "null": written("null"),
    "a list": written("[]"),
    "an empty table": written("{}"),
    "depth": written("[" * 100_000),
    "capability a number": facts(capability=9),
    "capability nonsense": facts(capability="nine"),
    "bytes null": facts(bytes=None),
    "bytes of text": facts(bytes={"installed": "9", "result": "5"}),
    "half of the bytes": facts(bytes={"result": 5}),
    "steps a number": facts(steps=5),
    "steps of numbers": facts(steps=[5]),
    "totals a number": facts(steps=[{"name": "audit", "totals": 5}]),
    "short null": facts(short=None),
    "created a number": facts(created=5),
    "schema a text": facts(schema="1"),
    "schema nought": facts(schema=0),
    "no bin/python": lambda result: (result / "bin" / "python").unlink(),
    "a bin/python that cannot be executed": lambda result: (result / "bin" / "python").chmod(0o644),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_told_kept_while_linked_and_replaced(
    damage: Callable[[Path], None], here: Store, tmp_path: Path
) -> None:
    link = tmp_path / "result"
    result = make(here, FIRST, link)
    damage(result.path)
    with pytest.raises(DamagedError):
        here.find(FIRST)
    (entry,) = here.entries()
    assert (entry.result, entry.links, entry.bytes) == (None, (link,), 0)
    assert entry.as_dict()["hint"] == "build it anew: vllm-variants build sm90 --release 0.13.0"
    collected = here.gc()
    assert collected.removed == ()
    assert [(kept.path, kept.hint) for kept in collected.kept] == [
        (result.path, "build it anew: vllm-variants build sm90 --release 0.13.0")
    ]
    make(here)  # what a build does
    assert here.find(FIRST) == result
    assert results.read(link).path == result.path
    assert names(here.root / "building") == []


def test_a_damaged_entry_without_a_link_is_removed(here: Store) -> None:
    result = make(here)
    (result.path / MANIFEST).write_text("")
    assert removed(here) == [FIRST]


def test_a_result_of_a_later_version_is_no_damage(here: Store) -> None:
    facts(schema=2)(make(here).path)
    with pytest.raises(InputError, match="this program reads 1") as caught:
        here.find(FIRST)
    assert not isinstance(caught.value, DamagedError)
    assert "use the vllm-variants that built it" in str(here.entries()[0].problem)


def test_a_build_that_is_damaged_is_never_published(here: Store) -> None:
    with here.lock(FIRST, lambda: None), here.building(FIRST) as folder:
        fill(folder)
        (folder / "bin" / "python").chmod(0o644)
        with pytest.raises(DamagedError):
            here.publish(folder, FIRST)
    assert here.find(FIRST) is None


# --- building, locks, folders ----------------------------------------------------------------------


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


def test_a_result_is_on_the_disk_before_it_is_seen(here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename, folder = store._sync_file_system, Path.rename, atomic.sync_folder
    monkeypatch.setattr(store, "_sync_file_system", lambda tree: (order.append("bytes"), sync(tree))[1])
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

    monkeypatch.setattr(store, "_sync_file_system", refused)
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


@pytest.mark.parametrize("command", [["gc"], ["list", "--results"], ["build", "sm90"]])
@pytest.mark.parametrize("data", ["x" * 300, "/".join(["y" * 200] * 30)])
def test_a_data_folder_that_cannot_be_named_is_a_sentence(
    command: list[str], data: str, tmp_path: Path
) -> None:
    told = run_cli(tmp_path, *command, XDG_DATA_HOME=str(tmp_path / data))
    assert told.returncode == 6, told.stderr
    assert "File name too long" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_results_that_are_damaged_are_listed_with_the_command(here: Store, tmp_path: Path) -> None:
    where = Store(tmp_path / "vllm-variants")
    make(where, FIRST, tmp_path / "result")
    make(where, SECOND)
    (where.path(FIRST) / MANIFEST).write_text("{}")
    told = run_cli(tmp_path, "list", "--results", XDG_DATA_HOME=str(tmp_path), COLUMNS="300")
    assert told.returncode == 0, told.stderr
    line = next(line for line in told.stdout.splitlines() if "damaged" in line)
    assert line.split()[:2] == ["sm90", "0.13.0"]
    assert str(where.path(FIRST) / MANIFEST) in told.stderr
    assert "vllm-variants build sm90 --release 0.13.0" in told.stderr
    as_json = run_cli(tmp_path, "list", "--results", "--json", XDG_DATA_HOME=str(tmp_path))
    first, second = json.loads(as_json.stdout)["results"]
    assert "is not a manifest" in first["problem"] and first["manifest"] is None
    assert "problem" not in second


def test_gc_tells_what_it_would_remove_and_what_it_leaves(here: Store, tmp_path: Path) -> None:
    where = Store(tmp_path / "vllm-variants")
    make(where, SECOND)
    (where.root / "store" / "notes").write_text("mine")
    dry = run_cli(tmp_path, "gc", "--dry-run", XDG_DATA_HOME=str(tmp_path))
    assert (dry.returncode, dry.stdout) == (0, "")
    assert f"would remove {SECOND}" in dry.stderr
    assert "1 would be removed" in dry.stderr
    assert f"left alone: {where.root}/store/notes (not made by vllm-variants)" in dry.stderr
    wet = run_cli(tmp_path, "gc", "--json", XDG_DATA_HOME=str(tmp_path))
    assert [gone["path"] for gone in json.loads(wet.stdout)["removed"]] == [str(where.path(SECOND))]
    assert not where.path(SECOND).exists()


def run_cli(cwd: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vllm_variants", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
