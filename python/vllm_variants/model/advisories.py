"""Known vulnerabilities of a release: `advisories/RELEASE.toml`, and what a later question to OSV found.

Three states are kept apart: some are known, none is known on a day, and nobody has asked. A list is never
complete: it is what public records said on the day that it bears.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_variants import data
from vllm_variants.errors import InputError
from vllm_variants.model import toml_file

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
REFRESH = "vllm-variants advisories --refresh"
_MEND = f"correct it, or remove it and ask anew: {REFRESH}"


@dataclass(frozen=True)
class Advisory:
    """One vulnerability: its id and other names, and from which version to which it is there.

    `severity` is a CVSS base score or a word, `condition` what has to be the case for it to matter, `source`
    who says so; `introduced` and `fixed` are versions of vLLM. Empty: not known.
    """

    id: str
    aliases: tuple[str, ...]
    severity: str
    introduced: str
    fixed: str
    condition: str
    source: str

    @property
    def names(self) -> frozenset[str]:
        """All its names."""
        return frozenset({self.id, *self.aliases})

    def as_dict(self) -> dict[str, Any]:
        """The advisory as JSON and as a table of the file."""
        return {**asdict(self), "aliases": list(self.aliases)}


@dataclass(frozen=True)
class Advisories:
    """What is known about one release; `read` is the day of it, None where nobody has asked."""

    release: str
    read: str | None
    known: tuple[Advisory, ...]

    @property
    def state(self) -> str:
        """`known`, `none known` or `not asked`."""
        return "not asked" if self.read is None else "known" if self.known else "none known"

    @property
    def sentence(self) -> str:
        """For people, in a clause: `13 known on 2026-11-24, the worst CVE-2026-22778 (9.8)`."""
        if self.read is None:
            return "not asked"
        if not self.known:
            return f"none in the records of {self.read}"
        worst = max(self.known, key=_rank)
        rated = f", the worst {worst.id} ({worst.severity})" if worst.severity else ""
        return f"{len(self.known)} known on {self.read}{rated}"

    def summary(self) -> dict[str, Any]:
        """As JSON, the ids alone."""
        ids = [advisory.id for advisory in self.known]
        return {"state": self.state, "read": self.read, "known": ids}

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "release": self.release,
            "state": self.state,
            "read": self.read,
            "known": [advisory.as_dict() for advisory in self.known],
        }


_WORDS = {"CRITICAL": 9.0, "HIGH": 7.0, "MODERATE": 4.0, "MEDIUM": 4.0, "LOW": 0.1}


def _rank(advisory: Advisory) -> float:
    try:
        return float(advisory.severity)
    except ValueError:
        return _WORDS.get(advisory.severity.upper(), 0.0)


def of(release: str, *, renewed: Path | None = None) -> Advisories:
    """What is known about a release ("0.13.0"): from its file, or a newer one in the folder `renewed`.

    Raises `InputError` where a file is broken.
    """
    folders = [*([renewed] if renewed else []), data.root() / "advisories"]  # the first of one day
    found = [read(folder / f"{release}.toml", release) for folder in folders]
    return max(found, key=lambda advisories: advisories.read or "")


def read(path: Path, release: str) -> Advisories:
    """The advisories of a file; those of a file that is not there were not asked for."""
    if not path.is_file():
        return Advisories(release, None, ())
    tables = toml_file.load(path)
    day = tables.get("read")
    if not isinstance(day, str) or not _DATE.fullmatch(day):
        raise InputError(f"{path}: read is {day!r}, not a day such as 2026-11-24", hint=_MEND)
    entries = tables.get("advisory", [])
    if not isinstance(entries, list):
        raise InputError(f"{path}: advisory is no list of tables: write [[advisory]]", hint=_MEND)
    return Advisories(release, day, tuple(_advisory(entry, path) for entry in entries))


def _advisory(table: Any, path: Path) -> Advisory:
    keys = ("id", "severity", "introduced", "fixed", "condition", "source")
    aliases = table.get("aliases", []) if isinstance(table, dict) else None
    texts = {key: table.get(key, "") for key in keys} if isinstance(table, dict) else {}
    if not isinstance(aliases, list) or not all(
        isinstance(text, str) for text in (*aliases, *texts.values())
    ):
        raise InputError(f"{path}: an advisory is broken: {str(table)[:80]}", hint=_MEND)
    if not texts["id"]:
        raise InputError(f"{path}: an advisory has no id", hint=_MEND)
    return Advisory(aliases=tuple(aliases), **texts)


def text(advisories: Advisories) -> str:
    """The text of a release's file."""
    head = (
        f"# Advisories that are known to affect vLLM {advisories.release}. Not complete: what was known on"
        f" the day of `read`, where\n# public records said so. Renewed by: {REFRESH}\n\n"
    )
    tables = {"read": advisories.read, "advisory": [each.as_dict() for each in advisories.known]}
    return head + toml_file.dumps(tables)
