"""A package index small enough to read: real wheels of a toy vLLM and torch, in a folder.

With it the real builder runs whole, real uv included, without a network and in a second.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from vllm_variants import data, locks, matrix
from vllm_variants.matrix import Release

VLLM = """\
__version__ = "{version}"
class LLM: ...
"""
SCRIPTS = "[console_scripts]\nvllm = vllm.cli:main\n"
CLI = "import sys, vllm\ndef main():\n    print(vllm.__version__, *sys.argv[1:])\n"


@dataclass(frozen=True)
class ToyIndex:
    """A folder that serves as `data.root()`: the matrix, `locks/`, and `wheels/` for uv to find."""

    root: Path

    @property
    def wheels(self) -> Path:
        return self.root / "wheels"

    def lock(self, release: Release, system: str) -> Path:
        """Lock exactly the wheels of that release for that system, by their hashes."""
        platform = locks.platform_of(system)
        lines = []
        for wheel in sorted(self.wheels.glob(f"*{platform}*.whl")):
            name, version, *_ = wheel.name.split("-")
            if name == "vllm" and version != release.name:
                continue
            lines.append(f"{name}=={version} --hash=sha256:{_digest(wheel).hex()}")
        path = self.root / "locks" / f"{release.name}-{platform}.txt"
        path.write_text("\n".join(lines) + "\n")
        return path


def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> ToyIndex:
    """Make the index, and let the builder and uv use it alone; uv's cache is one of its own."""
    index = ToyIndex(root)
    for folder in (index.wheels, root / "locks"):
        folder.mkdir(parents=True)
    (root / "variants.toml").write_bytes((data.root() / "variants.toml").read_bytes())
    rows = matrix.load()
    for system in matrix.SYSTEMS:
        platform = f"manylinux_2_28_{locks.platform_of(system)}"
        _wheel(
            index.wheels,
            "torch",
            "2.9.1",
            platform,
            {"torch/__init__.py": "", "torch/lib/libtorch_cuda.so": "ELF"},
        )
        for release in rows.releases.values():
            files = {
                "vllm/__init__.py": VLLM.format(version=release.name),
                "vllm/cli.py": CLI,
                f"vllm-{release.name}.dist-info/entry_points.txt": SCRIPTS,
            }
            _wheel(index.wheels, "vllm", release.name, platform, files)
            index.lock(release, system)
    monkeypatch.setattr(data, "root", lambda: root)
    for variable, value in (
        ("UV_NO_INDEX", "1"),
        ("UV_FIND_LINKS", str(index.wheels)),
        ("UV_CACHE_DIR", str(root / "uv-cache")),
        ("XDG_DATA_HOME", str(root / "data")),
    ):
        monkeypatch.setenv(variable, value)
    return index


def _wheel(folder: Path, name: str, version: str, platform: str, files: dict[str, str]) -> Path:
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-{platform}\n",
    }
    record = "".join(f"{path},{_recorded(text)},{len(text.encode())}\n" for path, text in files.items())
    path = folder / f"{name}-{version}-cp312-cp312-{platform}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(member, text)
    return path


def _recorded(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"sha256={digest}"


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
