"""`vllm-variants lock`: make the locks again from their inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants.builders.wheels import locks
from vllm_variants.cli import checkout
from vllm_variants.cli.output import say
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS


def lock(
    releases: Annotated[
        list[str] | None, typer.Argument(metavar="[RELEASE]...", help="All if absent.")
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Take newer versions than the old lock's.")
    ] = False,
) -> None:
    """Resolve locks/<release>-<platform>.txt again from the inputs beside them (in a checkout)."""
    checkout.require("lock")
    rows = matrix.load()
    chosen = [rows.release(name) for name in releases or rows.releases]  # all names, before any work
    for release in chosen:
        for system in SYSTEMS:
            say(f"resolving release {release.name} for {system} …")
            say(str(locks.remake(release, system, upgrade=upgrade)))
