"""The answer that people want: will it run on this card? Yes, after a wait, or no, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vllm_variants.audit.judging import JudgedFeature, State
from vllm_variants.model.capability import Capability

_NAMED = 3
"""Features that a sentence names before it counts the rest."""


class Word(StrEnum):
    """The answer in a word, from best to worst."""

    YES = "yes"
    WAITS = "waits"  # yes, after the driver compiled something at first use
    NO = "no"


@dataclass(frozen=True)
class Answer:
    """A word, and the sentence that a person reads first."""

    word: Word
    sentence: str

    def as_dict(self) -> dict[str, str]:
        """The answer as JSON."""
        return {"word": str(self.word), "sentence": self.sentence}


def answer(
    device: Capability, features: Sequence[JudgedFeature], unread: int, missing: str, driver_obstacle: str
) -> Answer:
    """What an audit comes to for a device.

    `unread` files could not be read, `missing` is what a release must have and does not, as a clause (empty:
    nothing), `driver_obstacle` why the driver that is there runs none of it (empty: it does).
    """
    sm = device.sm
    obstacles = [driver_obstacle] if driver_obstacle else []
    if missing:
        obstacles.append(missing)
    elif unread:
        obstacles.append(f"{_number(unread, 'file')} could not be read")
    lost = [f for f in features if f.state is State.MISSING]
    if lost:
        obstacles.append(f"nothing of {_names(lost)} runs on {sm}")
    old = [f for f in features if f.state is State.DRIVER]
    if old and not driver_obstacle:
        obstacles.append(f"{_names(old)}: {old[0].reason}")
    if obstacles:
        return Answer(Word.NO, f"no: {'; '.join(obstacles)}")
    if not any(f.counts.total for f in features):
        return Answer(Word.NO, f"no: there is no device code in it, for {sm} or any other card")
    if waiting := [f for f in features if f.state is State.WAITS]:
        seconds = sum(f.counts.jit_seconds for f in waiting)
        return Answer(
            Word.WAITS,
            f"yes, but not at once: on {sm} the driver first compiles {_names(waiting)}"
            f" ({duration(seconds)} of one core in all{_and_more(waiting)})",
        )
    return Answer(Word.YES, f"yes: everything in it that is made for {sm} runs from the first call on")


def _and_more(waiting: Sequence[JudgedFeature]) -> str:
    unknown = [f for f in waiting if not f.counts.timed]
    return f"; not known for {_names(unknown)}" if unknown else ""


def duration(seconds: float) -> str:
    """A time for people: `under a second`, `12 s`, `4 min`, `1.5 h`."""
    if seconds < 1:
        return "under a second"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _names(features: Sequence[JudgedFeature]) -> str:
    names = [f.name for f in sorted(features, key=lambda f: -f.counts.jit_seconds)]
    if len(names) > _NAMED:
        names[_NAMED - 1 :] = [f"{len(names) - _NAMED + 1} more"]
    return f"{', '.join(names[:-1])} and {names[-1]}" if names[1:] else names[0]
