"""The locked ptxas: fetched once with the real uv, from a small index, and every way that fails."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vllm_variants import data
from vllm_variants.builders.wheels import compilers
from vllm_variants.errors import Error, MissingError, ResourceError, UnsupportedError
from vllm_variants.model import matrix

PTXAS = """#!/bin/sh
echo "Cuda compilation tools, release 12.9, V12.9.86"
echo "Build cuda_12.9.r12.9/compiler.1"
"""
NAME, VERSION = "nvidia_cuda_nvcc_cu12", "12.9.86"


class Index:
    """A package index on this machine with one wheel, and a project whose lock names it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.asked = root, 0
        (root / "locks").mkdir(parents=True)
        self.wheel = self.make("py3-none-any")
        self.lock(self.wheel)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Pages, index=self))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_port}/simple"
        monkeypatch.setattr(data, "root", lambda: root)
        monkeypatch.setenv("UV_CACHE_DIR", str(root / "uv-cache"))
        monkeypatch.delenv("VLLM_VARIANTS_PTXAS", raising=False)

    def make(self, tag: str, program: str = "nvidia/cuda_nvcc/bin/ptxas") -> Path:
        path = self.root / f"{NAME}-{VERSION}-{tag}.whl"
        info = f"{NAME}-{VERSION}.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(program, PTXAS)
            wheel.writestr("nvidia/cuda_nvcc/nvvm/lib64/libnvvm.so", "large")
            wheel.writestr(f"{info}/licenses/License.txt", "NVIDIA's licence")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
            wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
            wheel.writestr(f"{info}/RECORD", "")
        return path

    def lock(self, wheel: Path) -> None:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        text = f"nvidia-cuda-nvcc-cu12=={VERSION} --hash=sha256:{digest}\n"
        (self.root / "locks" / "cuda12.9.compiler.txt").write_text(text)


class _Pages(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, index: Index) -> None:
        self._index = index
        super().__init__(*arguments, directory=str(index.root))

    def do_GET(self) -> None:
        self._index.asked += 1
        if self.path.strip("/") != "simple/nvidia-cuda-nvcc-cu12":
            super().do_GET()
            return
        page = "".join(
            f'<a href="/{wheel.name}">{wheel.name}</a>\n' for wheel in self._index.root.glob("*.whl")
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    return Index(tmp_path / "index", monkeypatch)


def test_it_is_fetched_once_whole_and_used_without_a_network_afterwards(index: Index, tmp_path: Path) -> None:
    assert compilers.installed("12.9", root=tmp_path) is None
    found = compilers.compiler("12.9", index=index.address, root=tmp_path)

    assert (found.version, found.build) == ("12.9.86", "cuda_12.9.r12.9/compiler.1")
    folder = found.ptxas.parent
    assert sorted(path.name for path in folder.iterdir()) == ["License.txt", "compiler.json", "ptxas"]
    assert json.loads((folder / "compiler.json").read_text()) == found.as_dict()
    assert [path.name for path in (tmp_path / "compilers").iterdir()] == [folder.name]
    asked = index.asked
    assert compilers.compiler("12.9", index="http://127.0.0.1:9/simple", root=tmp_path) == found
    assert compilers.installed("12.9", root=tmp_path) == found
    assert index.asked == asked


@pytest.mark.parametrize("damage", ["program", "facts", "missing"])
def test_a_damaged_one_is_fetched_again(index: Index, tmp_path: Path, damage: str) -> None:
    found = compilers.compiler("12.9", index=index.address, root=tmp_path)
    match damage:
        case "program":
            found.ptxas.write_text(PTXAS + "# damaged\n")
        case "facts":
            (found.ptxas.parent / "compiler.json").write_text("{")
        case "missing":
            found.ptxas.unlink()
    assert compilers.installed("12.9", root=tmp_path) is None
    assert compilers.compiler("12.9", index=index.address, root=tmp_path) == found
    assert [path.name for path in (tmp_path / "compilers").iterdir()] == [found.ptxas.parent.name]


def test_two_who_fetch_at_once_both_get_it(index: Index, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vllm_variants import data;"
        "data.root = lambda: Path(sys.argv[1]);"
        "from vllm_variants.builders.wheels import compilers;"
        "print(compilers.compiler('12.9', index=sys.argv[2], root=Path(sys.argv[3])).version)"
    )
    command = [sys.executable, "-c", script, str(index.root), index.address, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["12.9.86", "12.9.86"]
    assert len(list((tmp_path / "compilers").iterdir())) == 1


def test_another_wheel_than_the_locked_one_is_refused(index: Index, tmp_path: Path) -> None:
    index.make("py3-none-any", program="nvidia/cuda_nvcc/bin/other")
    with pytest.raises(Error, match="wrong hash"):
        compilers.compiler("12.9", index=index.address, root=tmp_path)
    assert list((tmp_path / "compilers").iterdir()) == []


def test_a_wheel_without_ptxas_is_said(index: Index, tmp_path: Path) -> None:
    index.lock(index.make("py3-none-any", program="nvidia/cuda_nvcc/bin/other"))
    with pytest.raises(Error, match="holds no ptxas"):
        compilers.compiler("12.9", index=index.address, root=tmp_path)
    assert list((tmp_path / "compilers").iterdir()) == []


def test_a_platform_without_a_wheel_is_said(index: Index, tmp_path: Path) -> None:
    index.wheel.unlink()
    index.lock(index.make("py3-none-win_amd64"))
    with pytest.raises(UnsupportedError, match=r"no ptxas of CUDA 12\.9 for this machine") as raised:
        compilers.compiler("12.9", index=index.address, root=tmp_path)
    assert "VLLM_VARIANTS_PTXAS" in (raised.value.hint or "")


def test_another_system_is_said_before_anything_is_fetched(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "host_system", lambda: "riscv64-linux")
    with pytest.raises(UnsupportedError, match="NVIDIA has no ptxas for riscv64-linux"):
        compilers.compiler("12.9", index=index.address, root=tmp_path)
    assert index.asked == 0


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_said(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    if offline:
        monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(ResourceError, match=r"ptxas of CUDA 12\.9 could not be fetched") as raised:
        compilers.compiler("12.9", index="http://127.0.0.1:9/simple", root=tmp_path)
    assert "VLLM_VARIANTS_PTXAS" in (raised.value.hint or "")
    assert list((tmp_path / "compilers").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(index: Index, tmp_path: Path) -> None:
    (tmp_path / "compilers").write_text("in the way")
    with pytest.raises(ResourceError):
        compilers.compiler("12.9", index=index.address, root=tmp_path)


def test_a_person_may_name_another_ptxas(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "my-ptxas"
    monkeypatch.setenv("VLLM_VARIANTS_PTXAS", str(own))
    with pytest.raises(MissingError, match="there is no ptxas at"):
        compilers.compiler("12.9", root=tmp_path)
    own.write_text(PTXAS.replace("12.9.86", "13.1.0"))
    own.chmod(0o755)
    assert compilers.compiler("12.9", root=tmp_path).version == "13.1.0"
    assert index.asked == 0


def test_a_cuda_without_a_lock_is_said(index: Index, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no lock of a compiler for CUDA 14\.0"):
        compilers.compiler("14.0", root=tmp_path)


def test_every_release_has_a_lock_of_its_compiler() -> None:
    for release in matrix.load().releases.values():
        text = compilers.lock_of(release.stack.cuda).read_text()
        assert f"{release.stack.cuda}." in text.splitlines()[0]
        assert "--hash=sha256:" in text and "://" not in text
