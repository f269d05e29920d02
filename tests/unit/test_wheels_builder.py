"""The `wheels` builder, whole and with real uv, on a toy index: results, links and every way to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import toy_index
from toy_index import ToyIndex

from vllm_variants.builders.wheels import installation
from vllm_variants.builders.wheels.builder import Wheels
from vllm_variants.errors import (
    AuditError,
    Error,
    InputError,
    MissingError,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from vllm_variants.machine import interpreters
from vllm_variants.model import matrix, results
from vllm_variants.model.platforms import host_system
from vllm_variants.model.requests import Request
from vllm_variants.model.results import Result
from vllm_variants.store import Store
from vllm_variants.system import uv
from vllm_variants.system.process import CompletedCommand

MATRIX = matrix.load()
HOST = host_system()
MINOR = MATRIX.default.stack.python
NAME = f"vllm-python312-cuda12_9-sm90{'-arm64' if HOST.startswith('aarch64') else ''}"

try:
    interpreters.find(MINOR)
except MissingError as absent:
    pytest.skip(f"the builder needs Python {MINOR}: {absent.message}", allow_module_level=True)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyIndex:
    return toy_index.make(tmp_path / "index", monkeypatch)


@pytest.fixture
def links(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def request_for(links: Path, release: str | None = None, **options: object) -> Request:
    variant = MATRIX.parse("9.0", system=HOST).variant
    return Request(variant, MATRIX.release(release), links, slim=False, **options)  # type: ignore[arg-type]


def build(links: Path, release: str | None = None, **options: object) -> tuple[Result, list[str]]:
    said: list[str] = []
    return Wheels(Store.default()).build(request_for(links, release, **options), said.append), said


def run(program: Path, *arguments: str, cwd: Path, **env: str) -> str:
    finished = subprocess.run(
        [program, *arguments], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


def nothing_is_left(links: Path) -> bool:
    store = Store.default().root
    return (
        not list(links.iterdir()) and not list((store / "store").glob("*")) and not Store.default().entries()
    )


def test_a_build_leaves_a_result_that_runs(index: ToyIndex, links: Path) -> None:
    result, _ = build(links)
    link = links / f"result-{NAME}"
    assert link.is_symlink()
    assert link.resolve() == result.path
    for program in ("python", "python3"):
        assert (
            run(link / "bin" / program, "-c", "import vllm; print(vllm.__version__)", cwd=Path("/"))
            == "0.13.0"
        )
    assert run(link / "bin" / "vllm", "serve", cwd=Path("/")) == "0.13.0 serve"


def test_the_manifest_says_what_was_done(index: ToyIndex, links: Path) -> None:
    facts = build(links)[0].manifest.facts
    assert facts["variant"] == NAME
    assert facts["release"] == "0.13.0"
    assert facts["stack"]["cuda"] == "12.9"
    assert facts["packages"] == {"torch": "2.9.1", "vllm": "0.13.0"}
    assert facts["lock"].startswith("sha256:")
    steps = {step["name"]: step for step in facts["steps"]}
    assert steps["install"]["status"] == "ran"
    assert steps["slim"] == {"name": "slim", "status": "skipped", "reason": "not asked for"}
    assert steps["audit"]["verdict"] == "pass"
    assert facts["bytes"]["installed"] > 0
    assert facts["bytes"]["result"] > 0


def test_the_host_does_not_leak_in(index: ToyIndex, links: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "leak.py").write_text("")
    build(links)
    ask = "import importlib.util, json, site, sys; print(json.dumps([importlib.util.find_spec('leak'),"
    ask += "site.ENABLE_USER_SITE, [p for p in sys.path if 'site-packages' in p]]))"
    python = links / f"result-{NAME}" / "bin" / "python"
    told = run(python, "-c", ask, cwd=Path("/"), PYTHONPATH=str(foreign), PYTHONHOME="/x")
    leaked, user_site, packages = json.loads(told)
    assert (leaked, user_site) == (None, False)
    assert all(path.startswith(str(Store.default().root)) for path in packages) and packages


def test_children_of_the_result_are_the_result(index: ToyIndex, links: Path) -> None:
    """vLLM starts its workers with `sys.executable`."""
    build(links)
    ask = (
        "import subprocess, sys; child = [sys.executable, '-c', 'import vllm; print(vllm.__file__)'];"
        "print(subprocess.check_output(child, text=True))"
    )
    assert str(Store.default().root) in run(
        links / f"result-{NAME}" / "bin" / "python", "-c", ask, cwd=Path("/")
    )


def test_a_result_runs_after_it_is_moved(index: ToyIndex, links: Path, tmp_path: Path) -> None:
    result, _ = build(links)
    moved = tmp_path / "elsewhere with a space"
    result.path.rename(moved)
    assert run(moved / "bin" / "vllm", "x", cwd=Path("/")) == "0.13.0 x"
    assert run(moved / "bin" / "python", "-c", "import vllm; print(vllm.__file__)", cwd=Path("/")).startswith(
        str(moved)
    )


def test_the_same_inputs_are_linked_and_not_built(index: ToyIndex, links: Path, tmp_path: Path) -> None:
    first, _ = build(links)
    other = tmp_path / "other"
    other.mkdir()
    second, said = build(other)
    assert second.path == first.path
    assert said == [f"{NAME} is already built"]
    assert (other / f"result-{NAME}").resolve() == first.path


def test_releases_are_results_of_their_own(index: ToyIndex, links: Path) -> None:
    default, _ = build(links)
    older, _ = build(links, "0.11.2")
    assert older.path != default.path
    program = links / f"result-{NAME}" / "bin" / "python"
    assert run(program, "-c", "import vllm; print(vllm.__version__)", cwd=Path("/")) == "0.11.2"


def test_a_wrong_hash_leaves_nothing(index: ToyIndex, links: Path) -> None:
    lock = index.lock(MATRIX.default, HOST)
    lock.write_text(lock.read_text()[:-9] + "00000000\n")
    with pytest.raises(Error, match="wrong hash"):
        build(links)
    assert nothing_is_left(links)


def test_a_damaged_wheel_is_no_index_out_of_reach() -> None:
    words = """error: Failed to download `vllm==0.13.0`
  cause: Failed to extract archive: vllm-0.13.0-cp38-abi3-manylinux_2_31_x86_64.whl
  cause: Bad uncompressed size (got 000012ed, expected 00002338) for file: vllm/_C.abi3.so
"""
    with pytest.raises(Error, match="a wheel that was downloaded is damaged") as caught:
        installation._check(CompletedCommand(2, words), "uv failed")
    assert not isinstance(caught.value, ResourceError)


def test_an_index_out_of_reach_leaves_nothing(
    index: ToyIndex, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ResourceError, match="index could not be reached") as caught:
        build(links)
    assert "what was downloaded is kept" in str(caught.value)
    assert nothing_is_left(links)


def test_a_release_without_a_lock_says_how_to_make_it(index: ToyIndex, links: Path) -> None:
    index.lock(MATRIX.default, HOST).unlink()
    with pytest.raises(MissingError, match=r"vllm-variants lock 0\.13\.0"):
        build(links)


def test_a_file_in_the_way_of_the_link_stays(index: ToyIndex, links: Path) -> None:
    precious = links / f"result-{NAME}"
    precious.write_text("mine")
    with pytest.raises(Error, match="it is not a link"):
        build(links)
    assert precious.read_text() == "mine"
    assert not (Store.default().root / "building").exists()  # looked for before anything is installed


def test_another_python_is_refused(index: ToyIndex, links: Path) -> None:
    with pytest.raises(UsageError, match=f"is not a CPython {MINOR}"):
        build(links, python=Path("/bin/true"))


@pytest.fixture
def stuck_uv(tmp_path: Path) -> Path:
    """A uv that makes environments and then installs for ever."""
    program = tmp_path / "stuck-uv"
    program.write_text(f'#!/bin/sh\n[ "$1" = pip ] && exec sleep 600\nexec {uv.program()} "$@"\n')
    program.chmod(0o755)
    return program


def stop_while_installing(links: Path, uv: Path, signum: int) -> tuple[int, str]:
    """Start a build whose uv never ends, send it `signum` once it is at work; exit status and talk."""
    command = [sys.executable, "-m", "vllm_variants", "build", "9.0", "--no-slim", "--links", str(links)]
    command += ["--index", "http://127.0.0.1:9/"]
    env = {**os.environ, "VLLM_VARIANTS_UV": str(uv), "PYTHONPATH": os.pathsep.join(sys.path)}
    started = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    building = Store.default().root / "building"
    deadline = time.monotonic() + 60
    while not list(building.glob("*/bin/python")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    started.send_signal(signum)
    try:
        _, said = started.communicate(timeout=60) if signum != signal.SIGKILL else ("", "")
        started.wait(timeout=60)
    finally:  # a killed build cannot stop its uv
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    return started.returncode, said


# The program's own matrix and locks are used there: nothing is downloaded before it is stopped.
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_build_cleans_up_and_says_so(
    index: ToyIndex, links: Path, stuck_uv: Path, signum: int
) -> None:
    status, said = stop_while_installing(links, stuck_uv, signum)
    assert (status, said.splitlines()[-1]) == (130, "interrupted: nothing half-done was left behind")
    assert not list((Store.default().root / "building").iterdir())
    assert nothing_is_left(links)


def test_a_killed_build_is_invisible_and_swept_by_gc(index: ToyIndex, links: Path, stuck_uv: Path) -> None:
    status, _ = stop_while_installing(links, stuck_uv, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert nothing_is_left(links)
    store = Store.default()
    assert [removed.path.parent.name for removed in store.gc().removed] == ["building"]
    assert not list((store.root / "building").iterdir())


def test_two_builds_at_once_make_one_result(index: ToyIndex, links: Path, tmp_path: Path) -> None:
    store = Store.default()
    other = tmp_path / "other"
    other.mkdir()
    said: list[str] = []
    lock = Wheels(store).entry(request_for(links))
    results_: list[Result] = []
    with store.lock(lock, lambda: None):
        second = threading.Thread(
            target=lambda: results_.append(Wheels(store).build(request_for(other), said.append))
        )
        second.start()
        deadline = time.monotonic() + 20
        while not said and time.monotonic() < deadline:
            time.sleep(0.02)
        assert said == [f"another build of {NAME} is running: waiting for it"]
        assert not list(other.iterdir())
    second.join(timeout=60)
    assert results_[0].path == build(links)[0].path


def toy_command(index: ToyIndex, links: Path) -> tuple[list[str], dict[str, str]]:
    """A build over the toy index in a process of its own: the command and its environment."""
    code = "import sys; import toy_build; toy_build.main(*sys.argv[1:])"
    python_path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    return [sys.executable, "-c", code, str(index.root), str(links)], {
        **os.environ,
        "PYTHONPATH": python_path,
    }


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="a small disk needs a mount of one's own, and unshare is not allowed here",
)
@pytest.mark.parametrize("limit", ["size=64k", "nr_inodes=3", "nr_inodes=5", "nr_inodes=8", "nr_inodes=20"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    limit: str, index: ToyIndex, links: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = (
        f'mount -t tmpfs -o {limit} tmpfs "$1" && shift && "$@"; status=$?;'
        'find "$XDG_DATA_HOME" -type f; exit $status'
    )
    command, env = toy_command(index, links)
    finished = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(small), *command],
        env={**env, "XDG_DATA_HOME": str(small / "data")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the disk is full" in finished.stderr or "No space left on device" in finished.stderr
    assert "Traceback" not in finished.stderr, finished.stderr
    assert finished.returncode == 6
    assert [line for line in finished.stdout.splitlines() if "/locks/" not in line] == []
    assert not list(links.iterdir())


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_stopped_at_any_moment_leaves_nothing_half_done(
    signum: int, index: ToyIndex, links: Path
) -> None:
    """Whatever is linked is whole, and the next build goes on as if there had been none."""
    command, env = toy_command(index, links)
    store = Store.default()
    started = time.monotonic()
    subprocess.run(command, env=env, capture_output=True, check=True)
    whole = time.monotonic() - started
    moments = 5
    for moment in range(moments):
        for link in links.iterdir():
            link.unlink()
        store.gc()
        building = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True)
        time.sleep(whole * (0.3 + 0.7 * moment / moments))
        with suppress(ProcessLookupError):
            os.killpg(building.pid, signum)
        _, said = building.communicate(timeout=60)
        assert b"Traceback" not in said, said.decode()
        assert all(entry.problem is None for entry in store.entries())
        for link in links.iterdir():
            results.require_python(results.read(link))
            assert [gone for gone in store.gc().removed if gone.path.parent.name == "store"] == []
        if signum != signal.SIGKILL:
            assert not list((store.root / "building").glob("*"))
    build(links)
    assert not list((store.root / "building").iterdir())
    assert run(links / f"result-{NAME}" / "bin" / "vllm", "x", cwd=Path("/")) == "0.13.0 x"


def test_another_platform_is_built_but_not_run(index: ToyIndex, links: Path) -> None:
    foreign = next(v for v in MATRIX.variants.values() if v.system != HOST)
    request = Request(foreign, MATRIX.default, links, slim=False, index=index.serve())
    said: list[str] = []
    result = Wheels(Store.default()).build(request, said.append)
    assert f"it is for {foreign.system}: it can be built here, but not run" in said
    assert result.manifest.system == foreign.system
    expected = result.path / "bin" / f"python{MINOR}"
    assert str(expected.readlink()) == f"/usr/bin/python{MINOR}"


def test_gc_keeps_what_is_linked_and_frees_the_rest(index: ToyIndex, links: Path) -> None:
    store = Store.default()
    kept, _ = build(links)
    dropped, _ = build(links, "0.11.2")
    build(links)  # the link points to the default release again
    assert [removed.path for removed in store.gc().removed] == [dropped.path]
    assert kept.path.exists()
    (links / f"result-{NAME}").unlink()
    assert [removed.path for removed in store.gc().removed] == [kept.path]
    assert store.entries() == []


def test_results_are_listed_with_size_and_links(index: ToyIndex, links: Path) -> None:
    result, _ = build(links)
    (entry,) = Store.default().entries()
    assert entry.result and entry.result.path == result.path
    assert entry.links == (links / f"result-{NAME}",)
    assert entry.bytes == result.manifest.facts["bytes"]["result"] > 0


def test_a_broken_result_is_a_sentence(index: ToyIndex, links: Path) -> None:
    result, _ = build(links)
    manifest = result.path / results.MANIFEST
    manifest.write_text("{}")
    with pytest.raises(Error, match="is not a manifest of a result"):
        results.read(links / f"result-{NAME}")


@pytest.mark.parametrize("lost", ["share/vllm-variants/manifest.json", "bin/python"])
def test_a_damaged_result_is_built_anew_by_the_same_command(lost: str, index: ToyIndex, links: Path) -> None:
    result, _ = build(links)
    (result.path / lost).unlink()
    again, said = build(links)
    assert again.path == result.path
    assert said[0].startswith(f"{NAME} is damaged (") and said[0].endswith("): it is built anew")
    assert run(links / f"result-{NAME}" / "bin" / "vllm", "x", cwd=Path("/")) == "0.13.0 x"
    assert build(links)[1] == [f"{NAME} is already built"]


def test_a_damaged_result_stays_until_the_new_one_is_whole(
    index: ToyIndex, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = build(links)
    (result.path / "bin" / "python").unlink()
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(index.root / "another-cache"))
    with pytest.raises(ResourceError):
        build(links)
    assert (result.path / results.MANIFEST).exists()


def test_offline_without_the_wheels_says_so(
    index: ToyIndex, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    with pytest.raises(ResourceError, match="uv may not use the network") as caught:
        build(links)
    assert "unset UV_OFFLINE" in str(caught.value)
    assert nothing_is_left(links)


def test_no_index_without_the_wheels_says_so(
    index: ToyIndex, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = index.root / "config" / "uv" / "uv.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'no-index = true\nfind-links = ["{tmp_path}"]\n')
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    with pytest.raises(ResourceError, match="uv may not use a package index") as caught:
        build(links)
    assert "unset UV_NO_INDEX" in str(caught.value)
    assert nothing_is_left(links)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"vllm==0.13.0 --hash=sha256:00\n", "has no torch"),
        (b"torch==2.9.1 --hash=sha256:00\n", "has no vllm"),
        (b"\xff\xfe", "is no text"),
        (b"torch==2.9.1\nvllm==0.13.0\n!!! what\n", "the lock is broken: Unexpected '!'"),
        (b"torch==2.9.1 --hash=sha256:00\nvllm==0.13.0\n", "the lock is broken: Invalid hash"),
        (b"torch==2.9.1\nvllm==0.13.0\nvllm===\n", "the lock is broken: "),
    ],
)
def test_a_broken_lock_is_a_wrong_input(text: bytes, says: str, index: ToyIndex, links: Path) -> None:
    index.lock(MATRIX.default, HOST).write_bytes(text)
    with pytest.raises(InputError) as caught:
        build(links)
    assert says in str(caught.value)
    assert "./vllm-variants lock" in str(caught.value)
    assert nothing_is_left(links)


def test_a_killed_builds_folder_is_swept_by_the_next_build_of_another_variant(
    index: ToyIndex, links: Path, stuck_uv: Path
) -> None:
    stop_while_installing(links, stuck_uv, signal.SIGKILL)
    building = Store.default().root / "building"
    assert list(building.iterdir())
    build(links, "0.11.2")
    assert not list(building.iterdir())


def test_a_torch_without_cuda_is_refused(index: ToyIndex, links: Path, tmp_path: Path) -> None:
    """What the public index has for aarch64."""
    foreign = next(v for v in MATRIX.variants.values() if v.system != HOST)
    toy_index.make_torch_a_cpu_build(index, foreign.system)
    request = Request(foreign, MATRIX.default, links, slim=False, index=index.serve())
    with pytest.raises(UnsupportedError, match="is a CPU build"):
        Wheels(Store.default()).build(request, lambda text: None)
    assert nothing_is_left(links)


def test_a_result_whose_audit_fails_is_not_linked(index: ToyIndex, links: Path) -> None:
    folder = index.root / "expectations"
    folder.mkdir()
    table = f'[{HOST}."vllm/_C.abi3.so"]\ncontainers = 3\nsm90 = {{ native = 3 }}\n'
    (folder / "0.13.0.toml").write_text(table)
    with pytest.raises(AuditError, match=rf"{NAME} was not linked: vllm/_C\.abi3\.so"):
        build(links)
    assert nothing_is_left(links)
