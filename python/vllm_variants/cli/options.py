"""Options and arguments that several subcommands share: one definition each, so that they mean the same."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_variants.errors import UsageError
from vllm_variants.model.capability import Capability

_DRIVER = re.compile(r"\d{3}(\.\d+)*")


def device(text: str) -> Capability:
    """The compute capability of a device as a person names it: sm89, 8.9, or a GPU's name of the matrix.

    Raises `UsageError` for a name that the matrix does not have.
    """
    try:
        return Capability.parse(text)
    except ValueError:
        from vllm_variants.model import matrix

        return matrix.load().parse(text).device


def driver(text: str) -> str:
    """The version of a driver as a person writes it; `UsageError` for what is none."""
    if not _DRIVER.fullmatch(text):
        raise UsageError(
            f"--driver {text!r} is no version of a driver", hint="write it as nvidia-smi does: 570.86"
        )
    return text


def path_option(*names: str, metavar: str, help: str) -> Any:
    """An option that takes a path, of which nothing is required before the command looks at it."""
    return typer.Option(*names, metavar=metavar, help=help, parser=Path)


def _variants(incomplete: str) -> list[tuple[str, str]]:
    from vllm_variants.model import matrix

    return [
        (variant.short, f"{variant.architecture}: {', '.join(variant.gpus[:3])}")
        for variant in matrix.load().every_variant
        if variant.short.startswith(incomplete)
    ]


def _releases(incomplete: str) -> list[str]:
    from vllm_variants.model import matrix

    return [name for name in matrix.load().releases if name.startswith(incomplete)]


_VARIANT = "sm90, 9.0, a full name or a GPU's name"

VariantName = Annotated[
    str | None,
    typer.Argument(metavar="VARIANT", help=f"{_VARIANT}.", show_default=False, autocompletion=_variants),
]
VariantNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="VARIANT", help=f"{_VARIANT}.", autocompletion=_variants),
]
VariantNamesOrAuto = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="VARIANT|auto",
        help=f"{_VARIANT}; auto: what this machine's GPUs need.",
        autocompletion=_variants,
    ),
]


def _release(help: str) -> Any:
    return typer.Option("--release", metavar="V", help=help, autocompletion=_releases)


ReleaseName = Annotated[str | None, _release("The vLLM release; if absent, the default one.")]
BuildRelease = Annotated[
    str | None,
    _release("The vLLM release, or newest: the newest that fits; if absent, the default one."),
]
AuditRelease = Annotated[
    str | None, _release("The vLLM release to hold it to; if absent, the one that is found in it.")
]
NEWEST = "newest"
"""What `build --release` takes besides a name: the newest that has what is asked for and runs here."""
Devices = Annotated[
    list[Capability] | None,
    typer.Option(
        "--sm",
        metavar="SM",
        parser=device,
        help="A device: sm90, 9.0 or a GPU's name. Repeatable.",
        show_default=False,
    ),
]

DriverVersion = Annotated[
    str | None,
    typer.Option(
        "--driver",
        metavar="V",
        parser=driver,
        help="Judge for this driver, e.g. 550.54; if absent, for the one here.",
    ),
]


class Compression(StrEnum):
    """How images may be stored."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"


Native = Annotated[
    bool,
    typer.Option("--native", help="Compile the PTX that the device would compile at first use, now."),
]
Compress = Annotated[
    Compression | None,
    typer.Option(
        help="Store images so where that is smaller; if absent, as the release's oldest driver reads it.",
        show_default=False,
    ),
]
KeepSymbols = Annotated[
    bool,
    typer.Option("--keep-symbols", help="Keep symbol tables and debug information, which nothing loads."),
]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]
