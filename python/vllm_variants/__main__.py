"""Where the command line starts: `python -m vllm_variants`, the installed program, a checkout's launcher.

Nothing of the package is imported before signals are heard, so that Ctrl-C during the imports ends
in an exit code and not in a traceback.
"""

import os
import signal
import sys
from pathlib import Path

if not __package__:  # started by its path: the package is beside, not installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def main() -> None:
    """Run the command line and exit with one of `errors.ExitCode`; 4 where the package is not whole."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # until the command line has its own: nothing is begun yet
        signal.signal(signum, lambda signum, frame: os._exit(130))
    try:
        from vllm_variants import cli
    except ImportError as error:
        sys.stderr.write(
            f"error: this installation is not whole: {error}\n"
            "hint: install it again; in a checkout: rm -r .venv, then ./vllm-variants\n"
        )
        sys.exit(4)
    cli.main()


if __name__ == "__main__":
    main()
