"""Files and links appear whole or not at all, and nobody's file is touched on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from vllm_variants.errors import Interrupted
from vllm_variants.system import atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_replaces_the_old_one_and_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "report"
    target.write_text("old")
    target.chmod(0o640)
    atomic.write(target, "new")
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)
    assert names(tmp_path) == ["report"]


def test_a_file_that_was_not_published_is_gone_and_the_old_one_stays(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic.new_file(target) as new:
        os.write(new.descriptor, b"half")
        raise RuntimeError
    assert (target.read_text(), names(tmp_path)) == ("old", ["a"])


def test_two_writers_of_one_file_do_not_touch_each_other(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with atomic.new_file(target) as one, atomic.new_file(target) as two:
        os.write(one.descriptor, b"one")
        os.write(two.descriptor, b"two")
        one.publish()
        assert target.read_bytes() == b"one"
        two.publish()
    assert (target.read_bytes(), names(tmp_path)) == (b"two", ["a"])


def test_what_somebody_put_in_place_of_the_new_file_is_not_published(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with atomic.new_file(target) as new:
        new.path.unlink()
        new.path.write_text("somebody's")
        with pytest.raises(FileNotFoundError):
            new.publish()
    assert not target.exists()
    assert new.path.read_text() == "somebody's"


def test_only_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    with atomic.new_file(tmp_path / "busy") as new:
        assert not atomic.remove_leftover(new.path)
        left = tmp_path / new.path.name.replace("busy", "left")
        left.write_text("half")
        notes = tmp_path / "notes.vllm-variants-new"
        notes.write_text("mine")
        folder = tmp_path / new.path.name.replace("busy", "folder")
        folder.mkdir()
        assert [atomic.remove_leftover(path) for path in (left, notes, folder)] == [True, False, False]
        assert atomic.leftover_target(left) == tmp_path / "left"
        assert [atomic.is_leftover_name(path.name) for path in (left, notes)] == [True, False]
    assert not left.exists() and notes.exists() and folder.exists()


def test_a_name_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 127)
    atomic.write(target, b"x")
    assert names(tmp_path) == [target.name]


def test_links_replace_what_is_there_in_one_step(tmp_path: Path) -> None:
    link, first, second = tmp_path / "link", tmp_path / "first", tmp_path / "second"
    first.write_text("1")
    second.write_text("2")
    atomic.symlink(link, first)
    atomic.symlink(link, second)
    assert link.readlink() == second
    atomic.hard_link(first, second)
    atomic.hard_link(first, second)  # the same file already: nothing is left beside it
    assert first.samefile(second)
    assert names(tmp_path) == ["first", "link", "second"]


def test_leftovers_of_one_target_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    long = tmp_path / ("n" * 250)
    target, other = tmp_path / "a", tmp_path / "ab"
    left = {each: atomic.name_beside(each) for each in (target, other, long)}
    for path in left.values():
        path.write_text("half")
    with atomic.new_file(target) as busy:
        for each in (target, long, tmp_path / "nowhere" / "x"):
            atomic.remove_leftovers_of(each)
        assert names(tmp_path) == sorted([left[other].name, busy.path.name])
    assert not atomic.is_leftover_of(left[other], target)


def test_ctrl_c_at_the_moment_when_a_file_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.open

    def stop(number: int, frame: object) -> None:
        raise Interrupted

    def then_interrupted(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = make(path, flags, mode)
        os.kill(os.getpid(), signal.SIGINT)
        return descriptor

    before = signal.signal(signal.SIGINT, stop)
    monkeypatch.setattr(os, "open", then_interrupted)
    try:
        with pytest.raises(Interrupted), atomic.new_file(tmp_path / "new"):
            raise AssertionError("it was interrupted before")
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []
