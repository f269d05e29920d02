"""`python -m vllm_variants`, and what the launcher of a checkout starts."""

import os
import signal
import sys
from pathlib import Path

if not __package__:  # started by its path: the package is beside, not installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def _start() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):  # until main has its own: nothing is begun yet
        signal.signal(signum, lambda signum, frame: os._exit(130))
    try:
        from vllm_variants.cli import main
    except ImportError as error:
        sys.stderr.write(
            f"error: this installation is not whole: {error}\n"
            "hint: install it again; in a checkout: rm -r .venv, then ./vllm-variants\n"
        )
        sys.exit(4)
    main()


if __name__ == "__main__":
    _start()
