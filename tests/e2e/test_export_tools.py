"""Debian's container tools read what `export` writes, and a registry takes only what it does not have.

skopeo, buildah, umoci and docker-registry judge; each test that lacks one is skipped and says which.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_variants
from unit.export.conftest import base, made_before, small_python, write_result

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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store, config = tmp_path / "store", tmp_path / "registry.yml"
    config.write_text(
        json.dumps(
            {
                "version": "0.1",
                "storage": {"filesystem": {"rootdirectory": str(store)}},
                "http": {"addr": f"127.0.0.1:{port}"},
            }
        )
    )
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
        yield f"127.0.0.1:{port}", store / "docker" / "registry" / "v2" / "blobs"
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
    assert (folder / "home" / "vllm").stat().st_uid == 1000
    run("buildah", *storage, "rm", "taken")
