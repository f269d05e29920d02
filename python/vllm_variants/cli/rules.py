"""Which parameters of a command go together: one rule for all, about what was written and not about values.

So `--max-jobs 0` and `--no-slim` count as given, and a default does not. Arguments go by the name
that the help gives them: `VARIANT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vllm_variants.errors import UsageError


@dataclass(frozen=True)
class CommandLine:
    """What was written: `given` by the names as written, `parameter_of` these → the command's parameters.

    `values` has every parameter, those that were not written with their default.
    """

    given: Mapping[str, object]
    parameter_of: Mapping[str, str]
    values: Mapping[str, object]


Rule = Callable[[CommandLine], None]
"""Raises `UsageError` for a command line that breaks it."""

_Command = TypeVar("_Command", bound=Callable[..., None])


def rules(*held: Rule) -> Callable[[_Command], _Command]:
    """Have `command.Command` hold the decorated function's command lines to these rules, in this order."""

    def decorate(function: _Command) -> _Command:
        function.__dict__["rules"] = held
        return function

    return decorate


def excludes(first: str, *others: str, reason: str = "", hint: str = "") -> Rule:
    """`first` goes with none of the others, for this reason."""

    def rule(line: CommandLine) -> None:
        for other in others:
            if first in line.given and other in line.given:
                raise _conflict(first, other, reason, hint)

    return rule


def requires(option: str, needed: str, hint: str) -> Rule:
    """`option` means nothing without `needed`."""

    def rule(line: CommandLine) -> None:
        if option in line.given and needed not in line.given:
            raise UsageError(f"{option} goes with {needed}", hint=hint)

    return rule


def one_of(*names: str, hint: str) -> Rule:
    """At least one of these is required."""

    def rule(line: CommandLine) -> None:
        if not any(name in line.given for name in names):
            raise UsageError(f"{' or '.join(names)} is required", hint=hint)

    return rule


def exactly_one(first: str, second: str, hint: str) -> Rule:
    """One of these is required, and they exclude each other."""
    required, exclusive = one_of(first, second, hint=hint), excludes(first, second)

    def rule(line: CommandLine) -> None:
        required(line)
        exclusive(line)

    return rule


def distinct_files(*options: str) -> Rule:
    """No two of these options name the same file."""

    def rule(line: CommandLine) -> None:
        names: dict[Path, str] = {}
        for option in options:
            if option not in line.given:
                continue
            file = Path(str(line.given[option])).absolute()
            if file in names:
                raise UsageError(
                    f"{names[file]} and {option} name the same file", hint="give each a file of its own"
                )
            names[file] = option

    return rule


def _conflict(first: str, other: str, reason: str, hint: str) -> UsageError:
    because = f": {reason}" if reason else ""
    return UsageError(
        f"{first} and {other} do not go together{because}", hint=hint or f"leave out {first} or {other}"
    )
