"""`python -m vllm_variants`, and what the launcher of a checkout starts."""

import sys
from pathlib import Path

if not __package__:  # started by its path: the package is beside, not installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from vllm_variants.cli import main

if __name__ == "__main__":
    main()
