"""`vllm-variants lock`: make the locks again from their inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants.builders.wheels import compilers, locks
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
    """Resolve the locks of releases and their compilers again from the inputs beside them (in a checkout)."""
    rows = matrix.load()
    chosen = [rows.release(name) for name in releases or rows.releases]  # all names, before any work
    for release in chosen:
        for system in SYSTEMS:
            say(f"resolving release {release.name} for {system} …")
            say(str(locks.remake(release, system, upgrade=upgrade)))
    for cuda in sorted({release.stack.cuda for release in chosen}):
        say(f"resolving the compiler of CUDA {cuda} …")
        say(str(compilers.remake(cuda)))
