"""Locks whose wheels lie on an index: read by ranges of bytes, or from uv's cache, and never passed over."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from making import cubin, library, section

from vllm_variants.audit.targets import identify
from vllm_variants.audit.targets.found import Found, Kind
from vllm_variants.errors import InputError, ResourceError
from vllm_variants.system import uv

CODE = section([cubin("sm_80", 3000), cubin("sm_90", 3000)], [cubin("sm_90a", 50_000)])
PLATFORM = "manylinux_2_28_x86_64"


class Server:
    """An index on this machine. `behaviour` is how it answers for wheels; `asked` the paths and ranges."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.behaviour, self.as_json = folder, "ranges", True
        self.asked: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Answers, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Answers(BaseHTTPRequestHandler):
    """The simple repository API, JSON (PEP 691) or HTML (PEP 503), and ranges of files (RFC 9110)."""

    def __init__(self, server: Server, *arguments: Any) -> None:
        self._index = server
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        """uv asks how large a wheel is."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer with a project's page, or with a wheel."""
        self._index.asked.append((self.path, self.headers.get("Range", "")))
        match self.path.strip("/").split("/"):
            case ["simple", project]:
                self._page(project)
            case ["wheels", name]:
                self._wheel(self._index.folder / name)
            case _:
                self._say(404, "text/plain", b"")

    def _page(self, project: str) -> None:
        wheels = sorted(self._index.folder.glob(f"{project.replace('-', '_')}-*.whl"))
        hashes = {wheel.name: hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}
        if not wheels:
            self._say(404, "text/plain", b"")
        elif self._index.as_json:
            files = [
                {"filename": name, "url": f"../../wheels/{name}", "hashes": {"sha256": digest}}
                for name, digest in hashes.items()
            ]
            page = {"meta": {"api-version": "1.0"}, "name": project, "files": files}
            self._say(200, "application/vnd.pypi.simple.v1+json", json.dumps(page).encode())
        else:
            links = [f'<a href="/wheels/{n}#sha256={d}">{n}</a>' for n, d in hashes.items()]
            self._say(200, "text/html", "\n".join(links).encode())

    def _wheel(self, path: Path) -> None:
        data, behaviour = path.read_bytes(), self._index.behaviour
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if behaviour == "absent":
            self._say(404, "text/plain", b"")
        elif behaviour == "whole" or not wanted:
            self._say(200, "application/zip", data)
        else:
            first, _, last = wanted.partition("-")
            start = max(0, len(data) - int(last)) if not first else int(first)
            end = min(int(last), len(data) - 1) if first and last else len(data) - 1
            self._say(206, "application/zip", data[start : end + 1], f"bytes {start}-{end}/{len(data)}")

    def _say(self, status: int, kind: str, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if self._index.behaviour == "stops" and content_range and len(body) > 1 << 16:
            body = body[:100]
            self.close_connection = True
        with suppress(OSError):  # whoever asked has what it wants
            self.wfile.write(body if self.command == "GET" else b"")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def wheel(folder: Path, name: str, platform: str = PLATFORM, filling: int = 400_000) -> str:
    """A wheel with a library and a large file beside it; its line in a lock."""
    made = library(folder / "made.so", CODE)
    path = folder / f"{name}-1.0-cp312-cp312-{platform}.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(made, f"{name}/_C.so", zipfile.ZIP_DEFLATED)
        archive.writestr(f"{name}/weights.bin", os.urandom(filling))
        archive.write(made, f"{name}/_D.so", zipfile.ZIP_DEFLATED)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: cp312-cp312-{platform}\n")
        archive.writestr(f"{info}/RECORD", "")
    made.unlink()
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An index that uv's own settings name; uv's cache is empty."""
    (tmp_path / "wheels").mkdir()
    server = Server(tmp_path / "wheels")
    for variable, value in (
        ("UV_DEFAULT_INDEX", server.url),
        ("UV_CACHE_DIR", str(tmp_path / "uv-cache")),
        ("XDG_CONFIG_HOME", str(tmp_path / "config")),
        ("XDG_CACHE_HOME", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("UV_INDEX", raising=False)
    yield server
    server.close()


Lock = Callable[..., Path]


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    def write(*lines: str) -> Path:
        path = tmp_path / "lock-x86_64.txt"
        path.write_text("".join(lines))
        return path

    return write


def containers(found: Found) -> dict[str, int]:
    return {each.path: len(each.containers) for each in found.libraries}


@pytest.mark.parametrize("as_json", [True, False], ids=["JSON", "HTML"])
@pytest.mark.parametrize("in_memory", [1 << 25, 1 << 12], ids=["in memory", "as it goes by"])
def test_of_a_wheel_on_an_index_only_its_libraries_are_fetched(
    index: Server, lock: Lock, as_json: bool, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_variants.audit.sieve.IN_MEMORY", in_memory)
    index.as_json = as_json
    found = identify.read(lock(wheel(index.folder, "toy", filling=4_000_000)))
    assert (found.kind, containers(found)) == (Kind.LOCK, {"toy/_C.so": 2, "toy/_D.so": 2})
    assert "0 of 1 from uv's cache" in found.notes[0]
    local = identify.read(next(index.folder.glob("*.whl")))
    assert [each.as_json() for each in found.libraries] == [each.as_json() for each in local.libraries]
    asked = [wanted for path, wanted in index.asked if path.startswith("/wheels/")]
    assert asked[0] == "bytes=-65536" and asked[1] == "bytes=0-", "the directory, then the first library"
    assert len(asked) == 2, "the second lies in what came with the directory"


def test_a_server_that_sends_no_ranges_is_named_and_nothing_is_fetched_whole(
    index: Server, lock: Lock
) -> None:
    line = wheel(index.folder, "toy")
    index.behaviour = "whole"
    with pytest.raises(
        ResourceError, match=r"no wheel .* can be reached: toy 1.0: the server sends no ranges"
    ):
        identify.read(lock(line))


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [("stops", "cannot be read: "), ("absent", "cannot be reached: the server answers 404")],
)
def test_a_wheel_that_does_not_come_is_a_problem_and_the_rest_is_read(
    index: Server, lock: Lock, behaviour: str, says: str
) -> None:
    path = lock(wheel(index.folder, "toy"), wheel(index.folder, "pure", "any"))
    index.behaviour = behaviour
    found = identify.read(path)
    assert any(each.problem.startswith(says) for each in found.libraries)


def test_a_wheel_of_another_hash_is_none_of_the_lock(index: Server, lock: Lock) -> None:
    line = wheel(index.folder, "toy")
    wheel(index.folder, "toy")  # made anew, with other bytes
    with pytest.raises(ResourceError, match="the index has no wheel with a hash of the lock"):
        identify.read(lock(line))


def test_markers_and_platforms_choose_as_pip_does(index: Server, lock: Lock) -> None:
    """A package for another system, a wheel for another machine: neither is read, neither is a problem."""
    found = identify.read(
        lock(
            wheel(index.folder, "toy").replace(" --hash", " ; sys_platform == 'linux' --hash"),
            "windows==1.0 ; sys_platform == 'win32' --hash=sha256:" + "0" * 64 + "\n",
            wheel(index.folder, "arm", "manylinux_2_28_aarch64"),
        )
    )
    assert containers(found) == {"toy/_C.so": 2, "toy/_D.so": 2}


def test_what_uv_has_is_read_from_its_cache(index: Server, lock: Lock, tmp_path: Path) -> None:
    """Installed by a real uv: then the index may be gone."""
    path = lock(wheel(index.folder, "toy", "manylinux_2_17_x86_64"))
    command = [
        uv.program(),
        "pip",
        "install",
        "--quiet",
        "--target",
        str(tmp_path / "there"),
        "--require-hashes",
    ]
    done = subprocess.run(
        [*command, "--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28", "-r", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    index.behaviour = "absent"
    found = identify.read(path)
    assert "1 of 1 from uv's cache" in found.notes[0]
    assert containers(found) == {"toy/_C.so": 2, "toy/_D.so": 2}


def test_a_list_of_packages_without_hashes_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch==2.9.1\n")
    with pytest.raises(InputError, match="torch has no hash"):
        identify.read(tmp_path / "requirements.txt")


# ── a real index ──

XFORMERS = """\
xformers==0.0.35 \\
    --hash=sha256:57381ce3cbb79b593e6b62cb20a937885345fad2796de2aa6fbb66c033601179 \\
    --hash=sha256:ccc73c7db9890224ab05f5fb60e2034f9e6c8672a10be0cf00e95cbbae3eda7c \\
    --hash=sha256:f7fc183a58e4bf0e2ae339a18fb1b1d4a37854c0f2545b4f360fef001646ab76
"""


@pytest.mark.network
def test_a_published_wheel_is_read_by_ranges(
    lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One library of 11 containers; the index is the one that uv is set to use."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    found = identify.read(lock(XFORMERS))
    assert containers(found) == {"xformers/_C.so": 11}
    assert "0 of 1 from uv's cache" in found.notes[0]
    (read,) = found.libraries
    assert sum(len(held.images) for held in read.containers) == 44, "as cuobjdump lists them"
