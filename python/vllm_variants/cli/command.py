"""How every subcommand reads its command line: options in groups, no empty values, what goes together."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from copy import copy
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from vllm_variants.cli.rules import CommandLine, Rule
from vllm_variants.errors import UsageError

NOT_UNDERSTOOD: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for an option that does not exist, a value that is none of the choices, …"""
MAY_BE_EMPTY = frozenset({"--builders"})
"""Options whose empty value means something: to Nix, no builders."""


class Command(TyperCommand):
    """A command that refuses empty values and broken `rules` before it runs, and groups its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; `UsageError` for an empty value, as an unset variable leaves it."""
        if not ctx.resilient_parsing:
            try:
                values, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            except NOT_UNDERSTOOD as error:
                error.__dict__["ctx"] = ctx  # whose help is hinted at
                raise
            if not values.get("help"):
                self._refuse_empty(values)
        return super().parse_args(ctx, args)

    def _refuse_empty(self, values: dict[str, Any]) -> None:
        for parameter in self.params:
            value = values.get(parameter.name or "")
            name = name_of(parameter)
            if name not in MAY_BE_EMPTY and "" in (value if isinstance(value, list | tuple) else (value,)):
                raise UsageError(
                    f"{name} is empty", hint=f"is a variable unset? give a value or leave out {name}"
                )

    def invoke(self, ctx: Any) -> Any:
        """Run the command, unless what was written breaks one of its rules."""
        held: tuple[Rule, ...] = getattr(self.callback, "rules", ())
        line = self._line(ctx)
        for rule in held:
            rule(line)
        return super().invoke(ctx)

    def _line(self, ctx: Any) -> CommandLine:
        given: dict[str, object] = {}
        parameter_of: dict[str, str] = {}
        for parameter in self.params:
            name = parameter.name or ""
            source = ctx.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                written = name_of(parameter, negative=ctx.params[name] is False)
                given[written], parameter_of[written] = ctx.params[name], name
        return CommandLine(given, parameter_of, ctx.params)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the help of arguments and options under the headings of their groups."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                heading = getattr(parameter, "rich_help_panel", None) or kind
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def name_of(parameter: Any, *, negative: bool = False) -> str:
    """`--keep-ptx`, `--no-slim`, or of an argument what its help calls it: `VARIANT`, `PATH`."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name).strip("[].").partition("|")[0].strip("[].")
    names = parameter.secondary_opts if negative and parameter.secondary_opts else parameter.opts
    return next((name for name in names if name.startswith("--")), str(names[0]))


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer reads it: each parameter that is a dataclass spread into the options that it has.

    A group's fields are annotated as parameters of commands are; the first line of its docstring is
    the heading of its options in the help. The command gets the dataclass, filled.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        command(**values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        parameters += (
            _options(groups[name]) if name in groups else [parameter.replace(annotation=hints[name])]
        )
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    spread.__dict__["__signature__"] = inspect.Signature(keywords)
    spread.__annotations__ = {each.name: each.annotation for each in keywords}
    del spread.__dict__["__wrapped__"]
    return spread


def _options(group: type[Any]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    heading = (inspect.getdoc(group) or "").splitlines()[0].rstrip(".")
    for field in dataclasses.fields(group):
        kind, option = _annotation(hints[field.name])
        option.rich_help_panel = heading
        factory: Any = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, option],
        )


def _annotation(hint: Any) -> tuple[Any, Any]:
    """The type of a field, and a copy of what typer is told about its option."""
    if get_origin(hint) is not Annotated:
        return hint, typer.Option()
    kind, option = get_args(hint)
    return kind, copy(option)
