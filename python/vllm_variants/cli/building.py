"""`vllm-variants build`: from its options to a builder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_variants.builders.outcomes import Builder
from vllm_variants.builders.source.options import Options
from vllm_variants.cli.build_options import NixOptions, SourceOptions, Via
from vllm_variants.cli.output import err
from vllm_variants.errors import UsageError
from vllm_variants.system.progress import draws


def builder(via: Via, keep_going: bool, source: SourceOptions, nix: NixOptions) -> Builder:
    """The builder that `via` names; `keep_going`: build the rest when a variant fails.

    Raises an `Error` where the machine lacks what the builder needs.
    """
    if via is Via.WHEELS:
        return _wheels(keep_going)
    return _flox(keep_going, source) if via is Via.FLOX else _nix(keep_going, source, nix)


def _wheels(keep_going: bool) -> Builder:
    from vllm_variants.builders.wheels.builder import Wheels
    from vllm_variants.store import Store

    return Wheels(Store.default(), keep_going)


def _nix(keep_going: bool, source: SourceOptions, nix: NixOptions) -> Builder:
    """The machine's Nix, or nix-fast-build where that engine is chosen."""
    from vllm_variants.builders import display
    from vllm_variants.builders.source import fast_build
    from vllm_variants.builders.source.finishing import Cache
    from vllm_variants.builders.source.nix import NixBuilder
    from vllm_variants.nix import command as nix_command

    cache = Cache(nix.push, nix.signing_key) if nix.push else None
    options = Options(source.cores, nix.max_jobs, keep_going, source.retries, source.logs, cache)
    command = nix_command.find(
        nix.flake,
        overrides=_pairs("--override-input", nix.override_input),
        options=_pairs("--nix-option", nix.nix_option),
        store=nix.store,
        builders=nix.builders,
    )
    if nix.engine:
        return fast_build.find(command, options)
    show = (lambda view: display.Board(view, err)) if draws() else None
    return NixBuilder(command, options, show)


def _flox(keep_going: bool, source: SourceOptions) -> Builder:
    from vllm_variants.builders import display
    from vllm_variants.builders.source import flox

    builder = flox.find(source.cores, source.retries, source.logs, keep_going)
    return replace(builder, show=lambda view: display.Board(view, err)) if draws() else builder


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text!r} is not understood", hint=f"write {option} NAME=VALUE")
        pairs.append((name, value))
    return pairs
