"""Audits are tested on libraries that `fatbin/making.py` writes, and on one tree with one of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fatbin"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with the library `vllm/_C.abi3.so` and a text beside it."""
    from making import library
    from sample import CODE

    folder = tmp_path / "tree"
    (folder / "vllm").mkdir(parents=True)
    library(folder / "vllm" / "_C.abi3.so", CODE)
    (folder / "vllm" / "text.py").write_text("x" * 9000)
    return folder
