"""For the whole suite: what programs that tests start must find, and must not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PYTHON = Path(__file__).resolve().parents[1] / "python"

# Tests start `python -m vllm_variants` and scripts that import it, from any folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PYTHON), os.environ.get("PYTHONPATH")]))
# Root may write into Nix's store, and a __pycache__ there makes a store path differ from its hash.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the tests of messages take."""
    parser.addoption(
        "--update-snapshots", action="store_true", help="Write tests/snapshots as the program speaks now."
    )
