"""`vllm-variants lock`: make the locks again from their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vllm_variants import documents
from vllm_variants.builders.wheels import compilers, locks
from vllm_variants.cli import checkout
from vllm_variants.cli.options import Json
from vllm_variants.cli.output import print_json, say
from vllm_variants.maintain import tool_locks
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS
from vllm_variants.model.variants import Release

_TOOL = "tool"


def lock(
    releases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RELEASE|tool",
            help="Locks of a release's wheels, or of this tool's own environment. All if absent.",
        ),
    ] = None,
    upgrade: Annotated[
        bool, typer.Option("--upgrade", help="Take newer versions than the old lock's.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Resolve the locks again with uv, each from its inputs.

    Of a release: locks/RELEASE-PLATFORM.txt and its CUDA's compiler, from the inputs beside them. Of this
    tool: locks/tool.txt and locks/tool-test.txt from pyproject.toml.
    """
    root = checkout.require("lock")
    rows = matrix.load()
    names = releases or [*rows.releases, _TOOL]
    chosen = [None if name == _TOOL else rows.release(name) for name in names]  # all names, before any work
    facts = []
    for release in chosen:
        for path, remake in _locks(root, release):
            say(f"resolving {path.name} …")
            before = path.read_bytes() if path.exists() else b""
            remake(upgrade=upgrade)
            changed = path.read_bytes() != before
            say(f"{path} {'changed' if changed else 'is as it was'}")
            facts.append({"lock": str(path), "changed": changed})
    if as_json:
        print_json({"schema": documents.LOCK, "locks": facts})


def _locks(root: Path, release: Release | None) -> Iterator[tuple[Path, Callable[..., Path]]]:
    """Each lock of a release, or of the tool for None, with the function that makes it again."""
    if release is None:
        for name in tool_locks.EXTRAS:
            yield root / "locks" / f"{name}.txt", partial(tool_locks.remake, root, name)
        return
    for system in SYSTEMS:
        name = f"{release.name}-{locks.platform_of(system)}.txt"
        yield root / "locks" / name, partial(locks.remake, release, system)
    cuda = release.stack.cuda
    yield root / "locks" / f"cuda{cuda}.compiler.txt", partial(compilers.remake, cuda)
