"""Run the command line's `build` over a toy index, in a process that starts as the program does."""

from __future__ import annotations

import sys
from pathlib import Path

from vllm_variants import __main__, data


def main(root: str, links: str, *options: str) -> None:
    """Build this host's 9.0 variant out of the toy index at `root`, linked in `links`.

    `options` are those of `build` (default: `--no-slim`).
    """
    data.root = lambda: Path(root)
    sys.argv = ["vllm-variants", "build", "9.0", "--links", links, *(options or ("--no-slim",))]
    __main__.main()
