"""For the whole suite: what programs that tests start must find, and must not write."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_variants.errors import Interrupted

PYTHON = Path(__file__).resolve().parents[1] / "python"

# Tests start `python -m vllm_variants` and scripts that import it, from any folder.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PYTHON), os.environ.get("PYTHONPATH")]))
# Of a job in the background that ignores Ctrl-C, programs that tests start and stop would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Root may write into Nix's store, and a __pycache__ there makes a store path differ from its hash.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the tests of messages take."""
    parser.addoption(
        "--update-snapshots", action="store_true", help="Write tests/snapshots as the program speaks now."
    )


@pytest.fixture
def ctrl_c_at_removal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C comes, and is handled as the command line does, whenever a folder begins to be removed.

    A test names this last, so that it ends before the fixtures whose folders it would disturb.
    """
    remove = shutil.rmtree

    def stop(number: int, frame: object) -> None:
        raise Interrupted

    def impatiently(path: Path, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        remove(path, **options)

    before = signal.signal(signal.SIGINT, stop)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", impatiently)
        yield
    signal.signal(signal.SIGINT, before)
