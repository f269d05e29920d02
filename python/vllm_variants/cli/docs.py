"""`vllm-variants docs`: rewrite what is computed from the matrix and from recorded runs."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants import documents
from vllm_variants.cli import checkout
from vllm_variants.cli.options import Json
from vllm_variants.cli.output import print_json, say
from vllm_variants.errors import ExitCode
from vllm_variants.maintain import docs as generated
from vllm_variants.maintain import flox
from vllm_variants.model import matrix
from vllm_variants.system import reporting


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if something is old.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rewrite what is computed: tables in README.md and docs/, Flox's expressions."""
    root = checkout.require("docs")
    outdated = {
        path: text
        for path, text in generated.files(root, matrix.load()).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    strays = flox.strays(root, matrix.load())
    for path in strays:
        say(f"{'no variant of the matrix' if check else 'removed'}: {path.relative_to(root)}")
        if not check:
            path.unlink()
    for path, text in outdated.items():
        say(f"{'outdated' if check else 'rewritten'}: {path.relative_to(root)}")
        if not check:
            reporting.write(path, text)
    if as_json:
        names = {"outdated": outdated, "strays": strays}
        facts = {name: [str(path.relative_to(root)) for path in paths] for name, paths in names.items()}
        print_json({"schema": documents.DOCS, **facts})
    if check and (outdated or strays):
        raise typer.Exit(ExitCode.FAILED)
    if not outdated and not strays:
        say("there is nothing to rewrite")
