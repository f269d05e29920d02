"""What an installer left, held to what it wrote down: uv goes on, and ends well, after some failed writes.

Seen with uv 0.13: an empty `pyvenv.cfg` or a missing RECORD after a disk error, and exit status 0. So
an environment counts as installed only when its settings are whole and every file that the packages
record is there with its recorded size. Contents are not read again: uv checked each wheel's hash. Several
packages may bring one path (the last that was installed has it), and some wheels were published with a
RECORD that is wrong: `misrecorded.toml` has those files, by hash.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vllm_variants.errors import ResourceError
from vllm_variants.model import toml_file

DATA = Path(__file__).with_name("misrecorded.toml")


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
    packages = {package: _record(package) for package in sorted(site.glob("*.dist-info"))}
    sizes: dict[str, set[str]] = defaultdict(set)
    for row in (row for rows in packages.values() for row in rows if len(row) == 3):
        sizes[row[0]].add(row[2])
    for package, rows in packages.items():
        if not rows:
            yield f"{package.name} has no list of its files (RECORD)"
        for row in rows:
            if len(row) == 3 and (
                _as_recorded(site, row[0], sizes[row[0]]) or _misrecorded(site, package, row[0])
            ):
                continue
            yield f"a file of {package.name} is not as recorded: {row[0] if row else 'an empty row'}"


def _record(package: Path) -> list[list[str]]:
    try:
        return list(csv.reader((package / "RECORD").read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _settings(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _as_recorded(site: Path, name: str, sizes: set[str]) -> bool:
    """Whether a file has the size that a package records; of several with that path, one package's."""
    try:
        found = os.stat(os.path.join(site, name)).st_size  # noqa: PTH116, PTH118 (40,000 files)
    except (OSError, ValueError):
        return False
    return "" in sizes or str(found) in sizes


def _misrecorded(site: Path, package: Path, name: str) -> bool:
    """Whether an installed file is the published one although the wheel's own RECORD says otherwise."""
    published = _published().get((package.stem, name))
    if not published:
        return False
    try:
        return hashlib.sha256((site / name).read_bytes()).hexdigest() in published
    except OSError:
        return False


@functools.cache
def _published() -> dict[tuple[str, str], set[str]]:
    """(`package-version`, path) → the sha256 of the file in each published wheel that has it."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in toml_file.load(DATA)["file"]:
        found[row["package"], row["path"]].add(row["sha256"])
    return found
