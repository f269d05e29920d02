"""`vllm-variants release add`: a vLLM that was published becomes a release of this checkout."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants import documents
from vllm_variants.cli import checkout
from vllm_variants.cli.options import DryRun, Json
from vllm_variants.cli.output import out, print_json, say, table

if TYPE_CHECKING:
    from vllm_variants.maintain.releases import Added


class Action(StrEnum):
    """What is done with a release."""

    ADD = "add"


def release(
    action: Annotated[Action, typer.Argument(metavar="ACTION", help="Make it a release of this checkout.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A published vLLM: 0.34.0.")],
    python_version: Annotated[
        str | None,
        typer.Option("--python-version", metavar="V", help="Its Python; the newest release's if absent."),
    ] = None,
    signatures: Annotated[
        bool,
        typer.Option("--signatures/--no-signatures", help="Install it, and try what the GPU checks call."),
    ] = True,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add a vLLM: its stack, locks, expectations, what its GPU checks call, and the tables, all or none."""
    from vllm_variants.maintain import releases

    root = checkout.require("release")
    options = releases.Options(python_version, signatures, dry_run)
    added = releases.add(root, version, options, say)
    if as_json:
        print_json(_document(added, dry_run))
    else:
        _show(added, dry_run)


def _document(added: Added, dry_run: bool) -> dict[str, object]:
    called = Counter(check.status for check in added.called) if added.called is not None else None
    return {
        "schema": documents.RELEASE,
        "release": added.release.name,
        "stack": added.release.stack.as_dict(),
        "glibc": added.release.glibc,
        "packages": added.packages,
        "checks": None if called is None else dict(called),
        "look_at": [{"check": look.check, "reason": look.reason} for look in added.looks],
        "files": list(added.files),
        "written": not dry_run,
    }


def _show(added: Added, dry_run: bool) -> None:
    stack = added.release.stack
    listing = table("", added.release.name)
    for what, value in (
        ("Python", stack.python),
        ("CUDA", stack.cuda),
        ("torch", stack.torch),
        ("driver", f"≥ {stack.driver}"),
        ("C library", f"≥ {added.release.glibc}"),
        *((f"packages, {system}", str(count)) for system, count in added.packages.items()),
    ):
        listing.add_row(what, value)
    out.print(listing)
    for look in added.looks:
        say(f"look at {look.check}: {look.reason}")
    if added.called is None:
        say("what the GPU checks call was not tried (--no-signatures)")
    else:
        counts = Counter(check.status for check in added.called)
        say("checks: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    say(f"{'would change' if dry_run else 'changed'}: {', '.join(added.files)}")
