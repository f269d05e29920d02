"""Where progress is drawn, and where it is a line now and then."""

from __future__ import annotations

import sys

import pytest

from vllm_variants.system import progress


@pytest.mark.parametrize(
    ("terminal", "kind", "draws"),
    [(True, "xterm", True), (True, None, True), (True, "dumb", False), (False, "xterm", False)],
)
def test_only_a_terminal_that_can_is_drawn_on(
    terminal: bool, kind: str | None, draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.delenv("TERM", raising=False)
    if kind:
        monkeypatch.setenv("TERM", kind)
    assert progress.draws() == draws


def test_elsewhere_every_quarter_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with progress.bar("slimming") as advance:
        for done in range(9):
            advance(done * 10**9, 8 * 10**9)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"slimming: {quarter} % of 8.00 GB" for quarter in (25, 50, 75, 100)]
