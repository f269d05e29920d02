"""`vllm-variants build`: from its options to a builder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_variants.builders.outcomes import Builder
from vllm_variants.builders.source.options import Options
from vllm_variants.cli.output import err
from vllm_variants.errors import UsageError
from vllm_variants.system.progress import draws


@dataclass(frozen=True)
class NixChoices:
    """Which flake and which Nix, as a person gave them."""

    flake: str | None
    override_input: list[str]
    nix_option: list[str]
    builders: str | None
    store: str | None
    engine: str | None


def options(
    cores: int | None,
    max_jobs: int | None,
    keep_going: bool,
    retries: int,
    logs: Path | None,
    push: str | None,
    signing_key: Path | None,
) -> Options:
    """The batch's options; `UsageError` for a cache or a key that is none."""
    from vllm_variants.builders.source.options import Cache

    cache = Cache(push, signing_key) if push else None
    return Options(cores, max_jobs, keep_going, retries, logs, cache)


def wheels(keep_going: bool) -> Builder:
    """The builder that installs published wheels."""
    from vllm_variants.builders.wheels.builder import Wheels
    from vllm_variants.store import Store

    return Wheels(Store.default(), keep_going)


def nix(how: NixChoices, options: Options) -> Builder:
    """The builder that has the machine's Nix compile, or nix-fast-build where that engine is chosen."""
    from vllm_variants.builders import display
    from vllm_variants.builders.source import fast_build
    from vllm_variants.builders.source.nix import NixBuilder
    from vllm_variants.nix import command as nix_command

    found = nix_command.find(
        how.flake,
        overrides=_pairs("--override-input", how.override_input),
        options=_pairs("--nix-option", how.nix_option),
        store=how.store,
        builders=how.builders,
    )
    if how.engine:
        return fast_build.find(found, options)
    show = (lambda view: display.Board(view, err)) if draws() else None
    return NixBuilder(found, options, show)


def flox(options: Options) -> Builder:
    """The builder that runs `flox build` for one variant after the other."""
    from vllm_variants.builders import display
    from vllm_variants.builders.source import flox as builder

    found = builder.find(options)
    if draws():
        return replace(found, show=lambda view: display.Board(view, err))
    return found


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text!r} is not understood", hint=f"write {option} NAME=VALUE")
        pairs.append((name, value))
    return pairs
