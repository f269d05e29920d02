"""Progress of a batch: lines that say what is new, and a table."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from vllm_variants.builders.display import EVERY, Board, Lines, Row, View


def test_lines_come_at_a_start_a_phase_and_after_a_while() -> None:
    now, printed = [0.0], list[str]()
    rows = [Row("sm90", "waiting")]
    lines = Lines(lambda: View(rows, "downloads: 1 of 2 MB"), printed.append, lambda: now[0])
    lines.tick()
    assert printed == []
    rows[0] = Row("sm90", "building", "configurePhase", None, "ssh-ng://far", 1.0)
    lines.tick()
    lines.tick()
    assert printed == ["sm90: configurePhase on ssh-ng://far, 1.0 s"]
    rows[0] = Row("sm90", "building", "buildPhase", (123, 406), "", 65.0)
    lines.tick()
    assert printed[1:] == ["sm90: buildPhase 123/406 objects, 1 min 5 s"]
    now[0] = EVERY
    lines.tick()
    assert printed[2:] == ["sm90: buildPhase 123/406 objects, 1 min 5 s", "downloads: 1 of 2 MB"]


def test_the_board_draws_every_variant_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    view = View(
        [Row("sm90", "building", "buildPhase", (123, 406), "", 65.0), Row("sm80", "waiting")], "beside"
    )
    with Board(lambda: view, console) as board:
        board.say("[not markup]")
        board.tick()
    drawn = screen.getvalue()
    for part in ("sm90", "123/406", "1 min 5 s", "sm80", "waiting", "beside", "[not markup]"):
        assert part in drawn


def test_a_download_tells_how_much_of_it_is_there() -> None:
    printed = list[str]()
    rows = [Row("sm90", "downloading", amount="12 of 800 MB")]
    lines = Lines(lambda: View(rows), printed.append, lambda: 0.0)
    lines.tick()
    assert printed == ["sm90: downloading 12 of 800 MB, 0.0 s"]
