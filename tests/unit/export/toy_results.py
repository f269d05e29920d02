"""Toy results to export: built by the real builder out of an index of small wheels with real device code."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import toy_index
from toy_index import ToyIndex

sys.path.append(str(Path(__file__).parents[1] / "fatbin"))
from making import cubin, library, section

from vllm_variants import data
from vllm_variants.builders.wheels.builder import Wheels
from vllm_variants.model import matrix
from vllm_variants.model.platforms import host_system
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.store import Store

HOST = host_system()
MATRIX = matrix.load()
TERMS = "You may not modify it.\n"
SCRIPT = "#!python\nprint('a program of a wheel')\n"


@dataclass(frozen=True)
class World:
    """A toy index, and the folder that has the links to what was built of it."""

    index: ToyIndex
    links: Path

    def build(self, device: str) -> Result:
        """The result for a device; an existing one is linked again."""
        variant = MATRIX.parse(device, system=HOST).variant
        request = Request(variant, MATRIX.default, self.links, keep_unread=True)
        return Wheels(Store.default()).build(request, lambda line: None)

    def published(self, name: str) -> Path:
        """The published wheel of a package."""
        (path,) = (p for p in self.index.wheels.glob(f"{name}-*.whl") if HOST.partition("-")[0] in p.name)
        return path


@contextmanager
def world(root: Path) -> Iterator[World]:
    """An index with a torch for three SMs, whose pins the lock does not keep, and a plain package."""
    schemas = data.root() / "schemas"
    with pytest.MonkeyPatch.context() as patch:
        index = toy_index.make(root / "index", patch)
        fatbin = section([cubin("sm_80", 300_000), cubin("sm_90", 200_000), cubin("sm_120", 250_000)])
        made = library(root / "libtorch_cuda.so", fatbin)
        _add_torch(index, made.read_bytes())
        _add_plain(index)
        for wheel in index.wheels.glob("vllm-*.whl"):
            if "-0.13.0-" not in wheel.name:
                wheel.unlink()
        index.lock(MATRIX.default, HOST)
        (root / "links").mkdir()
        (index.root / "schemas").symlink_to(schemas)
        yield World(index, root / "links")


def _add_torch(index: ToyIndex, code: bytes) -> None:
    metadata = (
        "Metadata-Version: 2.4\nName: torch\nVersion: 2.9.1\nLicense-Expression: BSD-3-Clause\n"
        "License-File: LICENSE\n"
        "Requires-Dist: plain==1.0\nRequires-Dist: plain[more]>=1.0\n"
        "Requires-Dist: absent; python_version>'3'\n"
        "Requires-Dist: other; extra == 'other'\n\nRequires-Dist: plain==1.0\nis only text.\n"
    )
    files: dict[str, str | bytes] = {
        **toy_index.TORCH,
        "torch/lib/libtorch_cuda.so": code,
        "torch/version.py": "__version__ = '2.9.1'\n",
        "torch-2.9.1.data/scripts/torch-tool": SCRIPT,
        "torch-2.9.1.data/data/share/man/torch.1": "a manual\n",
        "torch-2.9.1.dist-info/entry_points.txt": "[console_scripts]\ntorchrun = torch:run\n",
        "torch-2.9.1.dist-info/licenses/LICENSE": TERMS,
        "torch-2.9.1.dist-info/METADATA": metadata,
    }
    toy_index.add(index, "torch", "2.9.1", HOST, files)


def _add_plain(index: ToyIndex) -> None:
    metadata = (
        "Metadata-Version: 2.4\nName: plain\nVersion: 1.1\nLicense: MIT\n"
        "Requires-Dist: nowhere; extra == 'more'\nProvides-Extra: more\n\n"
    )
    files: dict[str, str | bytes] = {"plain.py": "", "plain-1.1.dist-info/METADATA": metadata}
    toy_index.add(index, "plain", "1.1", HOST, files)


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def sha256(path: Path) -> str:
    """A file's sha256, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
