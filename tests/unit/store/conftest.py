"""Every test of the store gets an empty one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_variants.store import Store


@pytest.fixture
def here(tmp_path: Path) -> Store:
    """A store of which nothing is there yet."""
    return Store(tmp_path / "data")
