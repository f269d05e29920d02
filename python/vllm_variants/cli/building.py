"""`vllm-variants build` with each of the builders: from options to outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_variants.builders import Request
from vllm_variants.builders.nix import Options
from vllm_variants.builders.outcomes import Outcome, Status
from vllm_variants.cli.batch_report import BatchReport
from vllm_variants.cli.output import err, say
from vllm_variants.errors import Error, UsageError


def wheels(requests: Sequence[Request], keep_going: bool, report: BatchReport) -> None:
    """Build one variant after the other from published wheels."""
    from vllm_variants.builders.wheels import Wheels
    from vllm_variants.store import Store

    builder = Wheels(Store.default())
    for index, request in enumerate(requests):
        name, short = request.name, request.variant.short
        try:
            result = builder.build(request, say)
        except Error as error:
            report.take(Outcome(name, short, Status.FAILED, error=error))
            if not keep_going:
                _skip(requests[index + 1 :], report)
                return
            continue
        facts = result.manifest.facts
        report.take(Outcome(name, short, Status.BUILT, link=request.link, path=result.path, manifest=facts))


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
    """The batch's options; `UsageError` for those that do not go together."""
    from vllm_variants.builders.finishing import Cache

    if signing_key and not push:
        raise UsageError("--signing-key goes with --push", mend="name the cache: --push file:///srv/cache")
    cache = Cache(push, signing_key) if push else None
    return Options(cores, max_jobs, keep_going, retries, logs, cache)


def nix(requests: Sequence[Request], how: NixChoices, options: Options, report: BatchReport) -> None:
    """Build all variants with the machine's Nix."""
    from vllm_variants.builders import display, fast_build, nix_command
    from vllm_variants.builders.nix import NixBuilder

    found = nix_command.find(
        how.flake,
        overrides=_pairs("--override-input", how.override_input),
        options=_pairs("--nix-option", how.nix_option),
        store=how.store,
        builders=how.builders,
    )
    if how.engine:
        fast_build.find(found, options).build_all(requests, say, report.take)
        return
    show = (lambda view: display.Board(view, err)) if err.is_terminal else None
    NixBuilder(found, options, show).build_all(requests, say, report.take)


def flox(requests: Sequence[Request], options: Options, report: BatchReport) -> None:
    """Build one variant after the other with `flox build`."""
    from vllm_variants.builders import display
    from vllm_variants.builders import flox as builder

    found = builder.find(options.cores, options.retries, options.logs)
    if err.is_terminal:
        found = replace(found, show=lambda view: display.Board(view, err))
    found.build_all(requests, say, report.take, keep_going=options.keep_going)


def _skip(requests: Sequence[Request], report: BatchReport) -> None:
    for request in requests:
        error = Error("not tried: another variant failed first", mend="leave out --no-keep-going")
        report.take(Outcome(request.name, request.variant.short, Status.SKIPPED, error=error))


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text!r} is not understood", mend=f"write {option} NAME=VALUE")
        pairs.append((name, value))
    return pairs
