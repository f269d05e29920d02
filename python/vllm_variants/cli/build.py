"""`vllm-variants build`: build variants and link them as `./result-<variant>`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from vllm_variants.cli import known_advisories
from vllm_variants.cli.build_options import (
    RULES,
    NixOptions,
    ReportOptions,
    SourceOptions,
    Via,
    WheelOptions,
)
from vllm_variants.cli.command import with_groups
from vllm_variants.cli.options import NEWEST, BuildRelease, VariantNamesOrAuto, path_option
from vllm_variants.cli.output import say
from vllm_variants.cli.rules import rules
from vllm_variants.errors import Error, UsageError
from vllm_variants.machine import detection, gpus
from vllm_variants.model import matrix, offers
from vllm_variants.model.capability import Capability
from vllm_variants.model.platforms import SYSTEMS, host_system
from vllm_variants.model.variants import Matrix, Release, Variant


@rules(*RULES)
@with_groups
def build(
    variants: VariantNamesOrAuto = None,
    all_variants: Annotated[bool, typer.Option("--all", help="Every variant of this host's system.")] = False,
    systems: Annotated[
        list[str] | None, typer.Option("--system", metavar="SYSTEM", help="With --all: of this system too.")
    ] = None,
    release: BuildRelease = None,
    via: Annotated[
        Via, typer.Option(help="How: wheels installs published wheels; nix and flox compile from source.")
    ] = Via.WHEELS,
    no_vulnerable: Annotated[
        bool, typer.Option("--no-vulnerable", help="Refuse a release with known advisories.")
    ] = False,
    links: Annotated[
        Path, path_option("--links", metavar="DIR", help="The folder that gets the result-… links.")
    ] = Path(),
    keep_going: Annotated[bool, typer.Option(help="Build the rest when a variant fails.")] = True,
    *,
    wheels: WheelOptions,
    source: SourceOptions,
    nix: NixOptions,
    reports: ReportOptions,
) -> None:
    """Build variants and link them here as result-<variant>."""
    from vllm_variants.cli import building
    from vllm_variants.cli.batch_report import BatchReport
    from vllm_variants.model.requests import Request

    rows = matrix.load()
    if release == NEWEST:
        chosen = _newest(variants or [], systems or [], rows, via)
        say(f"the newest release that fits is {chosen.name}")
    else:
        chosen = rows.release(release)
    chosen.require_builder(via)
    if no_vulnerable:
        known_advisories.require_none(chosen)
    requested = (
        _all(systems or [], rows, chosen) if all_variants else tuple(_named(variants or [], rows, chosen))
    )
    for variant in requested:
        offers.require(rows, chosen, variant)
    _require_folder(links)
    without = tuple(name for text in wheels.without for name in text.split(",") if name)
    requests = [
        Request(
            variant, chosen, links, wheels.index, wheels.python, wheels.slim, wheels.keep_ptx,
            wheels.native, wheels.compress, wheels.keep_symbols, wheels.keep_unread, without,
            wheels.bytecode,
        )
        for variant in dict.fromkeys(requested)
    ]  # fmt: skip
    with BatchReport(requests, reports) as report:
        builder = building.builder(via, keep_going, source, nix)
        if sentence := known_advisories.note(chosen):
            say(f"note: {sentence}")
        builder.build_all(requests, say, report.take)


def _require_folder(links: Path) -> None:
    """`UsageError` when `links` is no folder that can get links."""
    try:
        if stat.S_ISDIR(links.stat().st_mode):
            return
    except FileNotFoundError:
        if os.path.lexists(links):
            raise UsageError(
                f"{links} is a broken link, not a folder", hint="name a folder: --links DIR"
            ) from None
        raise UsageError(
            f"there is no folder {links} for the links", hint=f"make it: mkdir -p {links}"
        ) from None
    except OSError as error:
        raise UsageError(
            f"the folder {links} for the links cannot be used: {error.strerror}",
            hint="name another: --links DIR",
        ) from error
    raise UsageError(f"{links} is a file, not a folder for the links", hint="name its folder: --links DIR")


def _newest(names: Sequence[str], systems: Sequence[str], rows: Matrix, via: Via) -> Release:
    """The newest release that `via` makes, that has all that was asked for, and that this machine can run."""
    asked: dict[str, Sequence[Variant]] = {}
    refusals: dict[str, Error] = {}
    for release in rows.newest_first:
        try:
            release.require_builder(via)
            asked[release.name] = tuple(_named(names, rows, release, quiet=True)) or _all(
                systems, rows, release
            )
        except Error as refusal:  # another release may have it
            refusals[release.name] = refusal
    reasons = {name: refusal.message for name, refusal in refusals.items()}
    mistaken = any(isinstance(refusal, UsageError) for refusal in refusals.values())
    if not asked and (mistaken or len({*reasons.values()}) == 1):
        raise next(iter(refusals.values()))
    return detection.newest(gpus.machine(), rows, asked, reasons)


def _all(systems: Sequence[str], rows: Matrix, release: Release) -> tuple[Variant, ...]:
    """Every variant of `release` for this host's system and `systems`; `UsageError` for an unknown one."""
    for system in systems:
        if system not in SYSTEMS:
            raise UsageError(f"there is no system {system!r}", hint=f"write {' or '.join(SYSTEMS)}")
    chosen = {host_system(), *systems}
    return tuple(variant for variant in offers.of(rows, release).values() if variant.system in chosen)


def _named(names: Sequence[str], rows: Matrix, release: Release, *, quiet: bool = False) -> Iterator[Variant]:
    """The variants that these names mean, saying what a name was taken for when it is no variant's."""
    for name in names:
        if name == "auto":
            detected = detection.detect(gpus.machine(), rows, release)
            yield from detected.require()
            chosen = [(gpu.gpu.capability, gpu.chosen.variant) for gpu in detected.gpus if gpu.chosen]
        else:
            match = rows.parse(name, release=release)
            if match.interpretation != "a variant" and not quiet:
                say(f"{name}: taken as {match.interpretation} → {match.variant.short}")
            yield match.variant
            chosen = [(match.device, match.variant)]
        if not quiet:
            for sentence in dict.fromkeys(_built_elsewhere(*pair, rows, release) for pair in chosen):
                if sentence:
                    say(f"note: {sentence}")


def _built_elsewhere(device: Capability, variant: Variant, rows: Matrix, release: Release) -> str | None:
    """That another release has a variant for exactly this device, where `variant` only serves it too."""
    found = rows.built_for(device, variant.system)
    if variant.capability == device or not found:
        return None
    other, own = found
    return (
        f"{variant.short} of release {release.name} is built for {variant.capability} and serves {device}"
        f" besides; release {other.name} has one for {device}: vllm-variants build {own.short} --release"
        f" {other.name}"
    )
