"""What an installer left, held to what it wrote down: uv goes on, and ends well, after some failed writes.

Seen with uv 0.13: an empty `pyvenv.cfg` or a missing RECORD after a disk error, and exit status 0. So
an environment counts as installed only when its settings are whole and every file that the packages
record is there with its recorded size. Contents are not read again: uv checked each wheel's hash.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from vllm_variants.errors import ResourceError


def require_whole(environment: Path, site: Path) -> None:
    """Raise `ResourceError` unless `environment`, with its packages in `site`, is whole."""
    problem = next(_problems(environment, site), None)
    if problem:
        raise ResourceError(
            f"uv said that all is installed, but {problem}",
            hint="look at the disk (dmesg, df), then build again: what was downloaded is kept",
        )


def _problems(environment: Path, site: Path) -> Iterator[str]:
    settings = _settings(environment / "pyvenv.cfg")
    for key, value in (("home", None), ("relocatable", "true")):
        if key not in settings or (value and settings[key] != value):
            yield f"pyvenv.cfg has no `{key}{f' = {value}' if value else ''}`"
    for package in sorted(site.glob("*.dist-info")):
        try:
            rows = list(csv.reader((package / "RECORD").read_text(encoding="utf-8").splitlines()))
        except (OSError, UnicodeDecodeError, csv.Error):
            rows = []
        if not rows:
            yield f"{package.name} has no list of its files (RECORD)"
        for row in rows:
            if len(row) != 3 or not _as_recorded(site, row[0], row[2]):
                yield f"a file of {package.name} is not as recorded: {row[0] if row else 'an empty row'}"


def _settings(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _as_recorded(site: Path, name: str, size: str) -> bool:
    try:
        found = os.stat(os.path.join(site, name)).st_size  # noqa: PTH116, PTH118 (40,000 files)
    except (OSError, ValueError):
        return False
    return not size or size == str(found)
