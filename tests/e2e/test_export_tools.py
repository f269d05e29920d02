"""Debian's container tools read what `export` writes, and a registry takes only what it does not have.

skopeo, buildah, umoci and docker-registry judge; each test that lacks one is skipped and says which.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vllm_variants
from unit.export.conftest import SITE, base, made_before, small_python, write_base, write_result
from vllm_variants.errors import Error, InputError, ResourceError
from vllm_variants.system import folders

__all__ = ["base", "made_before", "small_python"]
pytestmark = pytest.mark.usefixtures("made_before")


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)} (apt install)")


def run(*command: str | Path) -> str:
    completed = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a registry on this machine, and the folder in which it keeps blobs."""
    with serving(tmp_path, {}) as address:
        yield address, tmp_path / "store" / "docker" / "registry" / "v2" / "blobs"


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def serving(tmp_path: Path, more: dict[str, Any], storage: dict[str, Any] | None = None) -> Iterator[str]:
    """Run a registry, with `more` in its configuration, until the block ends; its address."""
    port = unused_port()
    config = tmp_path / "registry.yml"
    document = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "store")}, **(storage or {})},
        "http": {"addr": f"127.0.0.1:{port}"},
        **more,
    }
    config.write_text(json.dumps(document))
    with (tmp_path / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdout=log, stderr=log, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "registry.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def blobs(store: Path) -> set[str]:
    return {path.parent.name for path in store.rglob("data")}


@needs("skopeo")
@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_skopeo_reads_and_copies_an_image(form: str, tmp_path: Path, base: str) -> None:
    to = f"{form}:{tmp_path / 'image'}"
    vllm_variants.export_results(write_result(tmp_path / "result"), to, base=base)
    described = json.loads(run("skopeo", "inspect", f"{to}:0.13.0-sm90"))
    assert described["Labels"]["dev.vllm-variants.sm"] == "sm90"
    run("skopeo", "copy", f"{to}:0.13.0-sm90", f"oci:{tmp_path / 'copy'}:again")
    assert (tmp_path / "copy" / "index.json").is_file()


@needs("umoci")
def test_umoci_unpacks_an_image_with_gzip(tmp_path: Path, base: str) -> None:
    layout = tmp_path / "image"
    vllm_variants.export_results(write_result(tmp_path / "result"), f"oci:{layout}", base=base, gzip=True)
    run("umoci", "unpack", "--rootless", "--image", f"{layout}:0.13.0-sm90", tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["process"]["args"] == ["vllm", "serve"]
    assert (tmp_path / "bundle" / "rootfs" / "opt" / "vllm" / "bin" / "vllm").is_file()


@needs("skopeo", "docker-registry")
def test_a_second_push_sends_only_what_changed(tmp_path: Path, base: str, registry: tuple[str, Path]) -> None:
    address, store = registry
    to = f"docker://{address}/vllm"
    first = write_result(tmp_path / "sm90")
    exported = vllm_variants.export_results(first, f"oci:{tmp_path / 'a'}", base=base, push=to)
    assert exported.as_dict()["pushed"] == [f"{to}:0.13.0-sm90"]
    before = blobs(store)
    vllm_variants.export_results(
        write_result(tmp_path / "sm80", "sm80"), f"oci:{tmp_path / 'b'}", base=base, push=to
    )
    # one layer of device code, one of launchers, the configuration and the manifest
    assert len(blobs(store) - before) == 4
    log = (tmp_path / "registry.log").read_text()
    uploads = log.count('"PUT /v2/vllm/blobs/uploads/')
    assert uploads == len(blobs(store)) - 2  # the two manifests are not sent as blobs
    run("skopeo", "copy", "--src-tls-verify=false", f"{to}:0.13.0-sm80", f"oci:{tmp_path / 'pulled'}:x")


@needs("skopeo", "docker-registry")
def test_several_images_are_pushed_each_under_its_tag_and_all_as_an_index(
    tmp_path: Path, base: str, registry: tuple[str, Path]
) -> None:
    address, _ = registry
    results = [write_result(tmp_path / short, short) for short in ("sm80", "sm90")]
    vllm_variants.export_results(
        results, f"oci:{tmp_path / 'image'}", base=base, push=f"docker://{address}/vllm"
    )
    listed = json.loads(run("skopeo", "list-tags", "--tls-verify=false", f"docker://{address}/vllm"))
    index = json.loads(
        run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{address}/vllm:0.13.0")
    )
    assert {inner["annotations"]["dev.vllm-variants.sm"] for inner in index["manifests"]} == {"sm80", "sm90"}
    assert sorted(listed["Tags"]) == ["0.13.0", "0.13.0-sm80", "0.13.0-sm90"]


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "it wants a login": ({"auth": {"silly": {"realm": "here", "service": "test"}}}, {}),
    "it is read-only": ({}, {"maintenance": {"readonly": {"enabled": True}}}),
}


@needs("skopeo", "docker-registry")
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_registry_that_refuses_is_one_sentence_and_the_layout_stays(
    refusal: str, tmp_path: Path, base: str
) -> None:
    more, storage = REFUSALS[refusal]
    with serving(tmp_path, more, storage) as address, pytest.raises(Error, match="was not pushed") as refused:
        vllm_variants.export_results(
            write_result(tmp_path / "result"),
            f"oci:{tmp_path / 'image'}",
            base=base,
            push=f"docker://{address}/vllm",
        )
    assert "\n" not in refused.value.message
    assert "skopeo copy" in (refused.value.hint or "")
    assert (tmp_path / "image" / "index.json").is_file()
    assert not blobs(tmp_path / "store")


@needs("skopeo")
def test_a_registry_that_is_not_there_is_one_sentence(tmp_path: Path, base: str) -> None:
    to = f"docker://127.0.0.1:{unused_port()}/vllm"
    with pytest.raises(Error, match="connection refused") as refused:
        vllm_variants.export_results(
            write_result(tmp_path / "result"), f"oci-archive:{tmp_path / 'image.tar'}", base=base, push=to
        )
    assert "\n" not in refused.value.message
    assert (tmp_path / "image.tar").is_file()


@needs("buildah")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: buildah's storage is made for it here")
def test_buildah_takes_an_image_as_it_is(tmp_path: Path, base: str) -> None:
    layout = tmp_path / "image"
    vllm_variants.export_results(write_result(tmp_path / "result"), f"oci:{layout}", base=base)
    storage = ["--storage-driver", "vfs", "--root", tmp_path / "root", "--runroot", tmp_path / "run"]
    run("buildah", *storage, "from", "--name", "taken", f"oci:{layout}:0.13.0-sm90")
    folder = Path(run("buildah", *storage, "mount", "taken").strip())
    assert (folder / "etc" / "issue").read_text() == "base"
    assert (folder / "opt" / "vllm" / "bin" / "python").is_file()
    assert (folder / "srv" / "vllm").stat().st_uid == 1000
    run("buildah", *storage, "rm", "taken")


# ── disks and folders that refuse ──

FORMS = ("folder", "tar.zst", "oci", "oci-archive")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 32 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    mounted = (
        subprocess.run(command, check=False, capture_output=True, text=True) if os.geteuid() == 0 else None
    )
    if mounted is None or mounted.returncode:
        pytest.skip(f"needs root that may mount: {mounted.stderr.strip() if mounted else 'this is a user'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def export_of(form: str, tmp_path: Path, folder: Path) -> None:
    options = {"base": f"oci:{write_base(tmp_path / 'base')}"} if form.startswith("oci") else {}
    result = write_result(tmp_path / "result")
    (result / SITE / "random.so").write_bytes(os.urandom(64_000))  # does not get smaller
    vllm_variants.export_results(result, f"{form}:{folder / 'made'}", **options)


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_without_room_is_refused_before_work_starts(
    form: str, tmp_path: Path, small_disk: Path
) -> None:
    with pytest.raises(ResourceError, match="GB free"):
        export_of(form, tmp_path, small_disk)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_fills_leaves_nothing(
    form: str, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 10**12)
    (small_disk / "of somebody else").write_bytes(bytes(24_000))
    with pytest.raises(ResourceError, match="disk is full"):
        export_of(form, tmp_path, small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["of somebody else"]


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_is_mounted_read_only_is_refused(form: str, tmp_path: Path, small_disk: Path) -> None:
    run("mount", "-o", "remount,ro", small_disk)
    with pytest.raises(InputError, match="cannot be written to: Read-only file system"):
        export_of(form, tmp_path, small_disk)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    program = [sys.executable, "-m", "vllm_variants", "export", "--result", write_result(tmp_path / "result")]
    as_nobody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if as_nobody and not shutil.which("setpriv"):
        pytest.skip("needs setpriv (apt install util-linux), since root may write everywhere")
    command = [*map(str, [*as_nobody, *program]), "--to", f"folder:{folder / 'made'}"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"error: {folder} cannot be written to: Permission denied\n" in refused.stderr
    assert list(folder.iterdir()) == []
