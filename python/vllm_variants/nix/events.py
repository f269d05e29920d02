"""Typed events of Nix's `--log-format internal-json`, one a line on stderr.

The numbers are those of Nix's logging.hh (`ActivityType`, `ResultType`); Lix and Determinate Nix add
numbers of their own. What is not known here becomes no event, so that a log never fails a build.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from vllm_variants.system.text import plain

PREFIX = "@nix "
_BUILD_NAME = re.compile(r"^\s*[\w.+-]+> ")


class Activity(IntEnum):
    """What an activity is doing; numbers that are not here are `UNKNOWN`."""

    UNKNOWN = 0
    COPY_PATH = 100
    FILE_TRANSFER = 101
    REALISE = 102
    COPY_PATHS = 103
    BUILDS = 104
    BUILD = 105
    SUBSTITUTE = 108

    @classmethod
    def _missing_(cls, value: object) -> Activity:
        return cls.UNKNOWN


@dataclass(frozen=True)
class Started:
    """An activity begins; `fields` are its texts and numbers (a build: derivation, machine)."""

    id: int
    kind: Activity
    text: str
    fields: tuple[str | int, ...]


@dataclass(frozen=True)
class Stopped:
    """An activity has ended, well or not."""

    id: int


@dataclass(frozen=True)
class LogLine:
    """A line that the builder of activity `id` printed, without colours."""

    id: int
    text: str


@dataclass(frozen=True)
class Phase:
    """The build of activity `id` enters a phase: `buildPhase`."""

    id: int
    name: str


@dataclass(frozen=True)
class Progress:
    """How far activity `id` is: builds and paths in pieces, copies and transfers in bytes."""

    id: int
    done: int
    expected: int
    running: int
    failed: int


@dataclass(frozen=True)
class Expected:
    """How much of an activity's kind is to come, as far as is known (bytes for copies)."""

    id: int
    kind: Activity
    amount: int


@dataclass(frozen=True)
class Message:
    """A message of Nix itself, without colours; level 0 is an error, 1 a warning, 3 and more are details."""

    level: int
    text: str

    @property
    def is_error(self) -> bool:
        """Whether Nix calls it an error."""
        return self.level == 0


Event = Started | Stopped | LogLine | Phase | Progress | Expected | Message

_LOG_LINE, _PHASE, _PROGRESS, _EXPECTED, _POST_BUILD_LINE = 101, 104, 105, 106, 107


def parse(line: str) -> Event | None:
    """The event in one line of Nix's stderr; None for an empty line and one that is not known here.

    A line without the `@nix` prefix (what a program behind Nix printed) is a `Message` of level 3.
    """
    text = line.rstrip("\n")
    if not text.startswith(PREFIX):
        return Message(3, plain(text)) if text else None
    try:
        return _event(json.loads(text[len(PREFIX) :]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
        return None


def _event(facts: dict[str, Any]) -> Event | None:
    match facts["action"]:
        case "start":
            kind = Activity(int(facts.get("type", 0)))
            fields = tuple(field for field in facts.get("fields", ()) if isinstance(field, str | int))
            return Started(int(facts["id"]), kind, plain(str(facts.get("text", ""))), fields)
        case "stop":
            return Stopped(int(facts["id"]))
        case "result":
            return _result(int(facts["id"]), int(facts["type"]), facts.get("fields", []))
        case "msg":
            return Message(int(facts.get("level", 3)), plain(str(facts["msg"])))
    return None


def _result(id: int, kind: int, fields: list[Any]) -> Event | None:
    if kind in (_LOG_LINE, _POST_BUILD_LINE):
        return LogLine(id, plain(str(fields[0])))
    if kind == _PHASE:
        return Phase(id, str(fields[0]))
    if kind == _PROGRESS:
        done, expected, running, failed = (int(field) for field in fields[:4])
        return Progress(id, done, expected, running, failed)
    if kind == _EXPECTED:
        return Expected(id, Activity(int(fields[0])), int(fields[1]))
    return None


def without_name(line: str) -> str:
    """A line of `--print-build-logs` without the derivation's name and `> ` before it."""
    return _BUILD_NAME.sub("", line)
