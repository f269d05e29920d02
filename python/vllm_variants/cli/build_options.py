"""Which options of `build` go together: one rule for all, about what was written and not about values.

So `--max-jobs 0` and `--no-slim` count as given, and a default does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

import typer

from vllm_variants.errors import UsageError


class Via(StrEnum):
    """The builders, by name."""

    WHEELS = "wheels"
    NIX = "nix"
    FLOX = "flox"


_SOURCE = (Via.NIX, Via.FLOX)
_BUILDERS_OF: Mapping[str, tuple[Via, ...]] = {
    **dict.fromkeys(("--index", "--python", "--slim", "--no-slim", "--keep-ptx"), (Via.WHEELS,)),
    **dict.fromkeys(("--retries", "--logs", "--cores"), _SOURCE),
    **dict.fromkeys(("--max-jobs", "--flake", "--override-input", "--nix-option", "--engine"), (Via.NIX,)),
    **dict.fromkeys(("--builders", "--store", "--push", "--signing-key"), (Via.NIX,)),
}
# An option, the one that it is nothing without, and what helps.
_NEEDS = (
    ("--system", "--all", "name the variants instead: sm90-arm64"),
    ("--signing-key", "--push", "name the cache: --push file:///srv/cache"),
)
# Two options that contradict each other, why, and what helps.
_EXCLUDES = (
    ("--json", "--jsonl -", "both write to stdout", "give --jsonl a file"),
    ("--keep-ptx", "--no-slim", "only slimming drops PTX", "leave out --keep-ptx"),
)
_REPORTS = ("--jsonl", "--junit", "--summary")
_MAY_BE_EMPTY = frozenset({"--builders"})  # to Nix it means: none


def path(option: str) -> Callable[[str], Path]:
    """The parser of an option's path; it raises `UsageError` for an empty one: the current folder is `.`."""

    def parsed(text: str) -> Path:
        _require_text(option, text)
        return Path(text)

    return parsed


def _require_text(option: str, text: object) -> None:
    if text == "":
        raise UsageError(
            f"{option} is empty", hint=f"is a variable unset? give a value or leave out {option}"
        )


def require_compatible(context: typer.Context, via: Via) -> None:
    """Raise `UsageError` for the first option that was given and does not go with the rest."""
    given = _given(context)
    for option, value in given.items():
        for text in value if isinstance(value, tuple | list) else (value,):
            if option not in _MAY_BE_EMPTY:
                _require_text(option, text)
        fitting = _BUILDERS_OF.get(option, tuple(Via))
        if via not in fitting:
            fits = " or ".join(fitting)
            raise UsageError(
                f"{option} goes with --via {fits}, not with --via {via}", hint=f"leave out {option}"
            )
    for option, needed, hint in _NEEDS:
        if option in given and needed not in given:
            raise UsageError(f"{option} goes with {needed}", hint=hint)
    for one, other, why, hint in _EXCLUDES:
        if one in given and other in given:
            raise UsageError(f"{one} and {other} do not go together: {why}", hint=hint)
    _require_distinct_files(given)


def _require_distinct_files(given: Mapping[str, object]) -> None:
    names: dict[Path, str] = {}
    for option in _REPORTS:
        if option not in given:
            continue
        file = Path(str(given[option])).absolute()
        if file in names:
            raise UsageError(f"{names[file]} and {option} name one file", hint="give each a file of its own")
        names[file] = option


def _given(context: typer.Context) -> dict[str, object]:
    """The options that were written on the command line, in the order of the help, and their values."""
    given: dict[str, object] = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or parameter.param_type_name != "option":
            continue
        value = context.params[name]
        option = (parameter.secondary_opts if value is False else parameter.opts)[-1]
        given[option] = value
        if option == "--jsonl" and str(value) == "-":
            given["--jsonl -"] = value
    return given
