"""A package index small enough to read: real wheels of a toy vLLM and torch, served on this machine.

With it the real builder runs whole, real uv included, without a network and in a second.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vllm_variants import data
from vllm_variants.builders.wheels import locks
from vllm_variants.model import matrix
from vllm_variants.model.platforms import SYSTEMS
from vllm_variants.model.variants import Release

VLLM = """\
__version__ = "{version}"
class LLM: ...
"""
TORCH = {"torch/__init__.py": "", "torch/lib/libtorch_cuda.so": "ELF"}
SCRIPTS = "[console_scripts]\nvllm = vllm.cli:main\n"
CLI = "import sys, vllm\ndef main():\n    print(vllm.__version__, *sys.argv[1:])\n"


@dataclass(frozen=True)
class ToyIndex:
    """A folder that serves as `data.root()`: the matrix, `locks/`, and `wheels/` for uv to find."""

    root: Path

    @property
    def wheels(self) -> Path:
        return self.root / "wheels"

    def serve(self) -> str:
        """Serve the wheels as a package index on this machine; its address. Ends with the process."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, index=self))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/simple"

    def lock(self, release: Release, system: str) -> Path:
        """Lock exactly the wheels of that release for that system, by their hashes."""
        platform = locks.platform_of(system)
        lines = []
        for wheel in sorted(self.wheels.glob(f"*{platform}*.whl")):
            name, version, *_ = wheel.name.split("-")
            if (name == "vllm" and version != release.name) or (name == "torch" and platform == "aarch64"):
                continue
            lines.append(f"{name}=={version} --hash=sha256:{_digest(wheel).hex()}")
        path = self.root / "locks" / f"{release.name}-{platform}.txt"
        path.write_text("\n".join(lines) + "\n")
        return path


class _Pages(SimpleHTTPRequestHandler):
    """The simple repository interface (PEP 503): a page a project, with the hash of each wheel."""

    def __init__(self, *arguments: Any, index: ToyIndex) -> None:
        self._index = index
        super().__init__(*arguments, directory=str(index.root))

    def do_GET(self) -> None:
        """Answer with a project's page, or with a wheel."""
        match self.path.strip("/").split("/"):
            case ["simple", project]:
                page = "".join(
                    f'<a href="/wheels/{wheel.name}#sha256={_digest(wheel).hex()}">{wheel.name}</a>\n'
                    for wheel in sorted(self._index.wheels.glob(f"{project.replace('-', '_')}-*.whl"))
                ).encode()
                self.send_response(200 if page else 404)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
            case _:
                super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> ToyIndex:
    """Make the index, and let the builder and uv use it alone; uv's cache is one of its own."""
    index = ToyIndex(root)
    for folder in (index.wheels, root / "locks"):
        folder.mkdir(parents=True)
    (root / "variants.toml").write_bytes((data.root() / "variants.toml").read_bytes())
    # As in the real locks: torch for aarch64 is on another index only.
    (root / "locks" / "cuda12.9-torch2.9.1.aarch64-index.in").write_text("torch==2.9.1\n")
    rows = matrix.load()
    for system in SYSTEMS:
        platform = f"manylinux_2_28_{locks.platform_of(system)}"
        _wheel(index.wheels, "torch", "2.9.1", platform, TORCH)
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
        ("UV_DEFAULT_INDEX", index.serve()),
        ("UV_CACHE_DIR", str(root / "uv-cache")),
        ("XDG_DATA_HOME", str(root / "data")),
        ("XDG_CONFIG_HOME", str(root / "config")),
        ("XDG_CONFIG_DIRS", str(root / "config")),
    ):
        monkeypatch.setenv(variable, value)
    for variable in ("UV_CONFIG_FILE", "UV_NO_CONFIG", "UV_OFFLINE", "UV_INDEX", "UV_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    return index


def put_into_torch(index: ToyIndex, system: str, library: bytes) -> None:
    """Replace the toy torch of a system by one whose libtorch_cuda is `library`, and lock it."""
    files = {**TORCH, "torch/lib/libtorch_cuda.so": library}
    _wheel(index.wheels, "torch", "2.9.1", f"manylinux_2_28_{locks.platform_of(system)}", files)
    for release in matrix.load().releases.values():
        index.lock(release, system)


def make_torch_a_cpu_build(index: ToyIndex, system: str) -> None:
    """Replace the toy torch of a system by one without CUDA."""
    _wheel(
        index.wheels,
        "torch",
        "2.9.1",
        f"manylinux_2_28_{locks.platform_of(system)}",
        {"torch/__init__.py": ""},
    )


def add(index: ToyIndex, name: str, version: str, system: str, files: Mapping[str, str | bytes]) -> Path:
    """Add a package for a system, or replace it; lock it after the last one."""
    return _wheel(index.wheels, name, version, f"manylinux_2_28_{locks.platform_of(system)}", files)


def _wheel(folder: Path, name: str, version: str, platform: str, files: Mapping[str, str | bytes]) -> Path:
    return wheel(folder, name, version, platform, files)


def wheel(
    folder: Path,
    name: str,
    version: str,
    platform: str,
    files: Mapping[str, str | bytes],
    requires: Sequence[str] = (),
) -> Path:
    """A real wheel for Python 3.12 with these files, which asks for the packages `requires`."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {package}\n" for package in requires),
        **files,
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-{platform}\n",
    }
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    record = "".join(f"{path},{_recorded(data)},{len(data)}\n" for path, data in contents.items())
    path = folder / f"{name}-{version}-cp312-cp312-{platform}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, data in {**contents, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            wheel.writestr(member, data)
    return path


def _recorded(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={digest}"


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
