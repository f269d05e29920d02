"""What is known of a release's vulnerabilities once OSV was asked: its records, and what was known before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vllm_variants.errors import InputError
from vllm_variants.model.advisories import Advisories, Advisory
from vllm_variants.versions import order

if TYPE_CHECKING:
    from packaging.version import Version

_OSV = "osv.dev"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def renewed(
    old: Advisories,
    records: Sequence[Mapping[str, Any]],
    day: str,
    every: Sequence[Mapping[str, Any]] = (),
) -> Advisories:
    """What is known once OSV gave these records (schema: ossf.github.io/osv-schema) on `day`.

    `records` are those that affect the release, `every` those of any version. Records that share a name are
    one vulnerability. An old entry that OSV has under any of its names keeps the condition that a person
    wrote; one that OSV does not have stays, since not every advisory has a record there. It goes when OSV
    withdrew it, or when OSV said it and says now that only other versions are affected. Raises `InputError`
    for what is no record.
    """
    try:
        fresh = [_from_osv(record, old.release) for record in records if not record.get("withdrawn")]
        live, withdrawn = _names(every, withdrawn=False), _names([*records, *every], withdrawn=True)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"OSV's answer is not understood: {error!r}") from error
    known = []
    for group in _vulnerabilities([*fresh, *old.known]):
        now = [advisory for advisory in group if advisory in fresh]
        earlier = [advisory for advisory in group if advisory not in fresh]
        names = frozenset[str]().union(*(advisory.names for advisory in group))
        said_by_osv = all(entry.source == _OSV for entry in earlier)
        if now or not names & (withdrawn | live if said_by_osv else withdrawn - live):
            known.append(_joined(now, earlier, names))
    return Advisories(old.release, day, tuple(known))


def _names(records: Sequence[Mapping[str, Any]], *, withdrawn: bool) -> frozenset[str]:
    """All names of the records that are withdrawn, or of those that are not."""
    chosen = [record for record in records if bool(record.get("withdrawn")) == withdrawn]
    return frozenset(str(name) for record in chosen for name in (record["id"], *_listed(record, "aliases")))


def _vulnerabilities(advisories: Sequence[Advisory]) -> list[list[Advisory]]:
    """The advisories in groups: those that share a name, through others too, are one vulnerability."""
    groups: list[list[Advisory]] = []
    for advisory in advisories:
        linked = [group for group in groups if any(advisory.names & other.names for other in group)]
        first = linked[0] if linked else []
        for group in linked[1:]:
            first += group
            groups.remove(group)
        if not linked:
            groups.append(first)
        first.append(advisory)
    return groups


def _joined(now: Sequence[Advisory], earlier: Sequence[Advisory], names: frozenset[str]) -> Advisory:
    """One vulnerability, of what OSV says and of what was known: a person's words first, OSV's versions."""

    def first(field: str, *sides: Sequence[Advisory]) -> str:
        values = (str(getattr(advisory, field)) for side in sides for advisory in side)
        return next(filter(None, values), "")

    known, said = (earlier, now), (now, earlier)
    chosen = first("id", *known)
    return Advisory(
        chosen, tuple(sorted(names - {chosen})), first("severity", *known), first("introduced", *said),
        first("fixed", *said), first("condition", *known), first("source", *said),
    )  # fmt: skip


def _from_osv(record: Mapping[str, Any], release: str) -> Advisory:
    introduced, fixed = _affected(record, release)
    named = record.get("database_specific") or {}
    return Advisory(
        _name(record["id"]),
        tuple(_name(alias) for alias in _listed(record, "aliases")),
        _line(named.get("severity")),
        introduced,
        fixed,
        _line(record.get("summary") or record.get("details"))[:200],
        _OSV,
    )


def _affected(record: Mapping[str, Any], release: str) -> tuple[str, str]:
    """From which version to which the record says that it is there, of the ranges that hold the release."""
    here = order(release)
    for affected in _listed(record, "affected"):
        if str((affected.get("package") or {}).get("name", "")).lower() != "vllm":
            continue
        for versions in _listed(affected, "ranges"):
            events = sorted(_events(versions)) if versions.get("type") == "ECOSYSTEM" else []
            past = [event for event in events if event[0] < here or (event[0] == here and event[1] < _LAST)]
            if past and past[-1][1] == _INTRODUCED:
                after = events[len(past) :]
                fixed = after[0][2] if after and after[0][1] == _FIXED else ""
                return past[-1][2], fixed
    return "", ""


_FIXED, _INTRODUCED, _LAST = range(3)
_SIDES = {"fixed": _FIXED, "introduced": _INTRODUCED, "last_affected": _LAST}


def _events(versions: Mapping[str, Any]) -> Iterator[tuple[Version, int, str]]:
    """The events of a range: place, side and version of each; what is no version is left out."""
    for event in _listed(versions, "events"):
        for side, version in event.items():
            if side in _SIDES:
                with suppress(ValueError):
                    yield order(str(version)), _SIDES[side], str(version).strip()


def _listed(table: Mapping[str, Any], key: str) -> Sequence[Any]:
    """A list of a record; empty where it is absent or null."""
    found = table.get(key) or []
    if not isinstance(found, list):
        raise TypeError(f"{key} is no list")
    return found


def _name(name: object) -> str:
    if isinstance(name, str) and _ID.fullmatch(name):
        return name
    raise ValueError(f"{str(name)[:80]!r} is no name of an advisory")


def _line(text: object) -> str:
    """A text as one line of letters that a terminal and a file show as they are; empty where it is none."""
    letters = text if isinstance(text, str) else ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in letters).split())
