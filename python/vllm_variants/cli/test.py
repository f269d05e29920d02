"""`vllm-variants test`: the project's own test suite, in a checkout."""

from __future__ import annotations

import os
import sys

import typer

from vllm_variants.cli import checkout


def test(context: typer.Context) -> None:
    """Run the whole test suite; further arguments go to pytest, e.g. `test -k matrix -x`."""
    os.chdir(checkout.require("test"))
    os.execv(sys.executable, [sys.executable, "-m", "pytest", "-n", "auto", *context.args])
