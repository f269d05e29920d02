"""Text for people."""

from __future__ import annotations

import pytest

from vllm_variants.system.text import duration, plain


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.24, "4.2 s"), (200, "3 min 20 s"), (59.96, "60.0 s"), (18720, "5 h 12 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_text_has_neither_colours_nor_movements_of_the_cursor() -> None:
    assert plain("\x1b[31;1merror:\x1b[0m no\x1b[2K\x1b[1A [1] left") == "error: no [1] left"
