"""What the reports of builds and of checks share: written whole or not at all, in text that XML can hold.

Needs the standard library alone: `python -m vllm_variants.verify` runs where nothing is installed.
"""

from __future__ import annotations

import re
from pathlib import Path

from vllm_variants.errors import resource_error

# Characters that XML 1.0 has no place for, not even escaped (a compiler may print them).
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(path: Path, text: str) -> None:
    """Write a report whole or not at all; `ResourceError` where the disk refuses."""
    aside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise resource_error(error) from error


def xml_text(text: str, instead: str = "�") -> str:
    """`text` with `instead` for each character that XML cannot hold."""
    return _NO_XML.sub(instead, text)
