"""What the tests of device code share: the real ptxas, fetched once for the whole suite."""

from __future__ import annotations

import os

import pytest

from vllm_variants.builders.wheels import compilers
from vllm_variants.errors import ResourceError, UnsupportedError
from vllm_variants.fatbin.native.compiler import Compiler


def _fetched(cuda: str, factory: pytest.TempPathFactory) -> Compiler:
    root = factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root  # one for all workers
    try:
        return compilers.compiler(cuda, root=root / "compilers-of-the-suite")
    except (ResourceError, UnsupportedError) as error:
        pytest.skip(f"the real ptxas {cuda} is needed: {error.message}")


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """ptxas of CUDA 12.9; skips where it cannot be had."""
    return _fetched("12.9", tmp_path_factory)


@pytest.fixture(scope="session")
def compiler13(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """ptxas of CUDA 13.0; skips where it cannot be had."""
    return _fetched("13.0", tmp_path_factory)
