"""Links: pointed by one rename, and nothing of somebody's is ever replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_variants.errors import Error, ResourceError
from vllm_variants.system import links, reporting


def test_a_link_is_made_and_pointed_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "result"
    for target in (tmp_path / "one", tmp_path / "two"):
        target.mkdir()
        links.point(link, target)
        assert link.readlink() == target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "result", "two"]


def test_a_broken_link_is_replaced(tmp_path: Path) -> None:
    link = tmp_path / "result"
    link.symlink_to("nowhere")
    links.point(link, tmp_path)
    assert link.resolve() == tmp_path.resolve()


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_no_link_stays(tmp_path: Path, folder: bool) -> None:
    precious = tmp_path / "result"
    precious.mkdir() if folder else precious.write_text("mine")
    with pytest.raises(Error, match="is in the way: it is not a link"):
        links.point(precious, tmp_path)
    assert precious.is_dir() if folder else precious.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be made: No such file or directory"):
        links.point(tmp_path / "absent" / "result", tmp_path)


def test_a_name_that_is_too_long_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be made: File name too long"):
        links.require_free(tmp_path / ("x" * 300))


def test_a_report_goes_through_a_link_to_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "report"
    link.symlink_to(Path("there", "report"))
    reporting.write(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "there" / "report").read_text() == "text"


def test_a_report_to_a_device_or_a_pipe_does_not_replace_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    reporting.write(pipe, "text")
    assert os.read(reader, 99) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_report_into_a_loop_of_links_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ResourceError, match="Too many levels of symbolic links"):
        reporting.write(tmp_path / "loop", "text")
