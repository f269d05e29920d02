"""Files of an installed tree that nothing opens: what is known of them, which are there, and without them.

`unread.toml` names them one by one, each with its evidence. A file is touched only when its size and
hash are those that were examined, so another version of a package is left whole, and the report says so.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_variants.builders.wheels.records import digest, encoded
from vllm_variants.errors import InputError, UsageError
from vllm_variants.model import toml_file
from vllm_variants.system import atomic

DATA = Path(__file__).with_name("unread.toml")


@dataclass(frozen=True)
class Examined:
    """The bytes that an entry holds for: their number, and their hash as RECORD has it (`sha256=…`)."""

    bytes: int
    hash: str


@dataclass(frozen=True)
class Listed:
    """A file, or a folder with all that RECORDs list in it; `path` is relative to site-packages.

    A file with `link` becomes a symbolic link to that file of its folder, which has the same bytes.
    """

    path: str
    examined: tuple[Examined, ...]
    link: str = ""
    is_folder: bool = False


@dataclass(frozen=True)
class Entry:
    """What one reason holds for. With `without`, it goes only when that name is asked for, and `loss`
    says what no longer works then. `readers` and `established` are the evidence, for people.
    """

    name: str
    packages: tuple[str, ...]
    readers: str
    established: str
    listed: tuple[Listed, ...]
    without: str = ""
    loss: str = ""


@dataclass(frozen=True)
class Action:
    """A file that goes, or becomes a link; `bytes` is what that saves."""

    entry: str
    path: str
    bytes: int
    link: str = ""


@dataclass(frozen=True)
class Left:
    """A listed file that stays, and why."""

    entry: str
    path: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What would be done to one site-packages folder."""

    actions: tuple[Action, ...]
    left: tuple[Left, ...]

    @property
    def saved(self) -> int:
        """Bytes."""
        return sum(action.bytes for action in self.actions)

    @property
    def dropped(self) -> list[str]:
        """The paths that will not be there, relative to site-packages."""
        return [action.path for action in self.actions if not action.link]

    def as_dict(self) -> dict[str, Any]:
        """The plan as the manifest holds it; sizes in bytes."""
        return {
            "saved": self.saved,
            "files": [
                {"entry": a.entry, "path": a.path, "bytes": a.bytes} | ({"link": a.link} if a.link else {})
                for a in self.actions
            ],
            "left": [{"entry": left.entry, "path": left.path, "why": left.why} for left in self.left],
        }


def load(path: Path = DATA) -> tuple[Entry, ...]:
    """A list's entries; raise `InputError` where it is none, `ResourceError` where it cannot be read."""
    tables = toml_file.load(path)
    try:
        return tuple(_entry(table) for table in tables["entry"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a list of unread files: {error!r}") from error


def digest_of_list(path: Path = DATA) -> str:
    """The sha256 of a list: part of the identity of what is made with it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(entries: Sequence[Entry]) -> dict[str, str]:
    """Each name that --without takes, with what no longer works then."""
    return {entry.without: entry.loss for entry in entries if entry.without}


def require_known(entries: Sequence[Entry], without: Collection[str]) -> None:
    """Raise `UsageError` for a name that --without does not take."""
    known = losses(entries)
    for name in without:
        if name not in known:
            raise UsageError(f"there is no {name!r} to leave out", hint=f"write {', '.join(sorted(known))}")


def plan(site: Path, entries: Sequence[Entry], without: Collection[str] = ()) -> Plan:
    """What can go from the folder `site` (site-packages): all entries that need no name, and those named.

    Reads each file that is listed and there. Raises `UsageError` for a name that no entry has.
    """
    require_known(entries, without)
    chosen = [entry for entry in entries if not entry.without or entry.without in without]
    actions: dict[str, Action] = {}
    left = []
    for entry in chosen:
        found = [item for listed in entry.listed for item in _looked_at(site, entry.name, listed)]
        left += [item for item in found if isinstance(item, Left)]
        if any(listed.is_folder and listed.path == item.path for listed in entry.listed for item in found):
            continue  # a folder stays, so what makes it importable stays
        for item in found:
            # What goes altogether needs no link.
            if isinstance(item, Action) and not (item.link and item.path in actions):
                actions[item.path] = item
    return Plan(tuple(actions[path] for path in sorted(actions)), tuple(left))


def apply(site: Path, planned: Plan) -> None:
    """Do what is planned, links first: a link's target has its bytes then. Folders stay, even empty ones."""
    for action in planned.actions:
        if action.link:
            atomic.symlink(site / action.path, action.link)
    for path in planned.dropped:
        (site / path).unlink()


def _looked_at(site: Path, entry: str, listed: Listed) -> Iterator[Action | Left]:
    path = site / listed.path
    if listed.is_folder:
        yield from _folder(site, entry, listed)
    elif path.is_symlink() and listed.link:
        yield Left(entry, listed.path, "is a link already")
    elif not path.is_file():
        yield Left(entry, listed.path, "is not there")
    elif path.is_symlink() and path.resolve().parent != path.parent.resolve():
        yield Left(entry, listed.path, "is a link to another folder")
    elif not _is_examined(path, listed.examined):
        yield Left(entry, listed.path, "is not the file that was examined")
    elif listed.link and not _is_examined(path.with_name(listed.link), listed.examined):
        yield Left(entry, listed.path, f"{listed.link} is not the file that was examined")
    else:
        yield Action(entry, listed.path, path.lstat().st_size - len(listed.link), listed.link)


def _folder(site: Path, entry: str, listed: Listed) -> Iterator[Action | Left]:
    """All files that RECORDs list in a folder, if they are those that were examined, every one."""
    rows = sorted(
        (name, found)
        for record in site.glob("*.dist-info/RECORD")
        for name, found in _rows(record)
        if name.startswith(f"{listed.path}/") and (site / name).is_file()
    )
    if not rows:
        yield Left(entry, listed.path, "is not there")
        return
    content = encoded(hashlib.sha256("\n".join(",".join(row) for row in rows).encode()))
    if content not in {examined.hash for examined in listed.examined}:
        yield Left(entry, listed.path, "is not the folder that was examined")
        return
    for name, expected in rows:
        if expected and digest(site / name)[0] != expected:
            yield Left(entry, listed.path, f"is not the folder that was examined: {name} is another file")
            return
    for name, _ in rows:
        yield Action(entry, name, (site / name).stat().st_size)


def _rows(record: Path) -> Iterator[tuple[str, str]]:
    with record.open(encoding="utf-8", newline="") as file:
        yield from ((row[0], row[1]) for row in csv.reader(file) if len(row) > 1)


def _is_examined(path: Path, examined: Sequence[Examined]) -> bool:
    if not path.is_file():
        return False
    size = path.stat().st_size
    candidates = {known.hash for known in examined if known.bytes == size}
    return bool(candidates) and digest(path)[0] in candidates


def _entry(table: Mapping[str, Any]) -> Entry:
    files = [_listed(file, is_folder=False) for file in table.get("file", ())]
    folders = [_listed(folder, is_folder=True) for folder in table.get("folder", ())]
    return Entry(
        str(table["name"]),
        tuple(str(package) for package in table["packages"]),
        str(table["readers"]).strip(),
        str(table["established"]).strip(),
        (*files, *folders),
        str(table.get("without", "")),
        str(table.get("loss", "")),
    )


def _listed(table: Mapping[str, Any], *, is_folder: bool) -> Listed:
    examined = tuple(
        Examined(int(facts["bytes"]), str(facts["hash"]))
        for system, facts in table.items()
        if system.endswith("-linux")
    )
    path, link = str(table["path"]), str(table.get("link", ""))
    if not examined or path.startswith("/") or ".." in Path(path).parts or "/" in link:
        raise ValueError(f"{path}: needs a path inside site-packages and what was examined")
    return Listed(path, examined, link, is_folder)
