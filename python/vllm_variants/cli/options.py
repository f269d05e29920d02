"""Options and arguments that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def named_path(text: str) -> Path:
    """A path as a person typed it; an empty one, of an unset variable, is not the current folder."""
    if not text:
        raise typer.BadParameter("it is empty: is a variable unset?")
    return Path(text)


def _variants(incomplete: str) -> list[tuple[str, str]]:
    from vllm_variants.model import matrix

    rows = matrix.load().variants.values()
    return [
        (v.short, f"{v.architecture}: {', '.join(v.gpus[:3])}")
        for v in rows
        if v.short.startswith(incomplete)
    ]


def _releases(incomplete: str) -> list[str]:
    from vllm_variants.model import matrix

    return [name for name in matrix.load().releases if name.startswith(incomplete)]


ReleaseName = Annotated[
    str | None,
    typer.Option(
        "--release",
        metavar="V",
        help="The vLLM release; the default one if absent.",
        autocompletion=_releases,
    ),
]
VariantNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[VARIANT|auto]...",
        help="sm90, 9.0, a full name or a GPU's name; auto: what this machine's GPUs need.",
        autocompletion=_variants,
    ),
]
