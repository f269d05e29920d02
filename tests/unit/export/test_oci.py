"""Image layouts: what they say, what they share, and that nothing but their input decides their bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

import vllm_variants
from unit.export.conftest import SITE, contents, write_base, write_result
from unit.validating import require_valid
from vllm_variants import documents
from vllm_variants.errors import Error, InputError, MissingError, UsageError
from vllm_variants.export import layers, oci, push
from vllm_variants.export.base_debian import _is_kept
from vllm_variants.export.base_layout import Base
from vllm_variants.export.interpreter import Runtime
from vllm_variants.store import disk

pytestmark = pytest.mark.usefixtures("made_before")


def blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """A blob, which has the digest and the size that its descriptor says."""
    data = (layout / "blobs" / "sha256" / descriptor["digest"].partition(":")[2]).read_bytes()
    assert descriptor["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert descriptor["size"] == len(data)
    return data


def document(layout: Path, descriptor: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(blob(layout, descriptor))
    return loaded


def images(layout: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((layout / "index.json").read_text())["manifests"]
    return found


def members(layout: Path, layer: dict[str, Any]) -> dict[str, tarfile.TarInfo]:
    data = blob(layout, layer)
    if layer["mediaType"].endswith("zstd"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
        return {member.name: member for member in archive}


def test_what_results_share_needs_room_once(tmp_path: Path) -> None:
    sm89, sm90 = write_result(tmp_path / "sm89", "sm89"), write_result(tmp_path / "sm90")
    alone = disk.disk_use(sm89)[0] + disk.disk_use(sm90)[0]
    assert disk.disk_use(sm89, sm90)[0] == alone
    shared = sm89 / SITE / "idna" / "__init__.py"
    shared.unlink()
    shared.hardlink_to(sm90 / SITE / "idna" / "__init__.py")
    assert disk.disk_use(sm89, sm90)[0] == alone - shared.stat().st_size


@pytest.mark.parametrize("gzip", [False, True])
def test_an_image_holds_the_base_and_the_tree_and_starts_serving_as_a_user(
    gzip: bool, tmp_path: Path, base: str
) -> None:
    layout = tmp_path / "image"
    vllm_variants.export_results(write_result(tmp_path / "result"), f"oci:{layout}", base=base, gzip=gzip)
    (described,) = images(layout)
    manifest = document(layout, described)
    kinds = {layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"][1:]}
    assert kinds == {"tar+gzip" if gzip else "tar+zstd"}
    config = document(layout, manifest["config"])
    assert config["config"]["Entrypoint"] == ["vllm", "serve"]
    assert config["config"]["User"] == "1000:0"
    variables = dict(variable.split("=", 1) for variable in config["config"]["Env"])
    assert variables["PATH"] == "/opt/vllm/bin:/bin"
    assert variables["OF_BASE"] == "1"
    assert variables["NVIDIA_REQUIRE_CUDA"] == "driver>=560"
    assert config["config"]["Labels"]["dev.vllm-variants.sm"] == "sm90"
    assert len(config["rootfs"]["diff_ids"]) == len(manifest["layers"]) <= layers.MOST
    files: dict[str, tarfile.TarInfo] = {}
    for layer in manifest["layers"]:
        files |= members(layout, layer)
    assert {"etc/issue", "opt/vllm/bin/vllm", f"opt/vllm/{SITE}/vllm/_C.abi3.so"} <= files.keys()
    home = files["srv/vllm"]
    assert (home.uid, home.gid, home.mode) == (1000, 0, 0o775)
    assert files["tmp"].mode == 0o1777


def test_the_digests_of_what_layers_unpack_to_are_right(tmp_path: Path, base: str) -> None:
    layout = tmp_path / "image"
    vllm_variants.export_results(write_result(tmp_path / "result"), f"oci:{layout}", base=base)
    manifest = document(layout, images(layout)[0])
    unpacked = []
    for layer in manifest["layers"]:
        data = blob(layout, layer)
        if layer["mediaType"].endswith("zstd"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        unpacked.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
    assert document(layout, manifest["config"])["rootfs"]["diff_ids"] == unpacked


def test_the_same_result_gives_the_same_layout(tmp_path: Path, base: str) -> None:
    first = write_result(tmp_path / "one" / "result")
    second = write_result(tmp_path / "two" / "result", created="2027-01-01T00:00:00Z!")
    for name, result in (("a", first), ("b", second)):
        vllm_variants.export_results(result, f"oci:{tmp_path / name}", base=base)
        vllm_variants.export_results(result, f"oci-archive:{tmp_path / name}.tar", base=base)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_archive_holds_the_same_images(tmp_path: Path, base: str) -> None:
    result = write_result(tmp_path / "result")
    vllm_variants.export_results(result, f"oci:{tmp_path / 'folder'}", base=base)
    vllm_variants.export_results(result, f"oci-archive:{tmp_path / 'file.tar'}", base=base)
    with tarfile.open(tmp_path / "file.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    unpacked, folder = images(tmp_path / "unpacked"), images(tmp_path / "folder")
    assert unpacked == folder
    blobs = Path("blobs", "sha256")
    assert contents(tmp_path / "unpacked" / blobs).keys() == contents(tmp_path / "folder" / blobs).keys()


def test_images_share_all_but_device_code_and_launchers_and_an_index_says_which_sm(
    tmp_path: Path, base: str
) -> None:
    results = [write_result(tmp_path / short, short) for short in ("sm80", "sm90")]
    layout = tmp_path / "image"
    exported = vllm_variants.export_results(results, f"oci:{layout}", base=base)
    *singles, both = images(layout)
    assert [single["annotations"]["org.opencontainers.image.ref.name"] for single in singles] == [
        "0.13.0-sm80",
        "0.13.0-sm90",
    ]
    index = document(layout, both)
    assert [inner["annotations"]["dev.vllm-variants.sm"] for inner in index["manifests"]] == ["sm80", "sm90"]
    assert [inner["digest"] for inner in index["manifests"]] == [single["digest"] for single in singles]
    facts: Any = exported.as_dict()["images"]
    named = [{layer["name"]: layer["digest"] for layer in image["layers"]} for image in facts]
    different = {name for name in named[0] if named[0][name] != named[1].get(name)}
    assert different == {"device code for sm80", "launchers and manifests"}


def test_a_large_library_has_a_layer_of_its_own(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "LARGE", 1000)
    result = write_result(tmp_path / "result")
    for number in range(60):
        (result / SITE / f"library{number}.so").write_bytes(bytes([number]) * (2000 + number))
    exported = vllm_variants.export_results(result, f"oci:{tmp_path / 'image'}", base=base)
    facts: Any = exported.as_dict()["images"]
    names = [layer["name"] for layer in facts[0]["layers"]]
    assert len(names) <= layers.MOST
    assert "_C.abi3.so" in names
    assert "library59.so" in names


def test_a_large_library_may_have_any_name(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "LARGE", 1000)
    result, name = write_result(tmp_path / "result"), os.fsdecode(b"odd-\xff\n.so")
    (result / SITE / name).write_bytes(bytes(2000))
    vllm_variants.export_results(result, f"oci:{tmp_path / 'image'}", base=base)
    manifest = document(tmp_path / "image", images(tmp_path / "image")[0])
    found = [members(tmp_path / "image", layer) for layer in manifest["layers"]]
    assert any(f"opt/vllm/{SITE}/{name}" in files for files in found)


def test_the_manifest_of_the_export_is_beside_the_index(tmp_path: Path, base: str) -> None:
    layout = tmp_path / "image"
    exported = vllm_variants.export_results(write_result(tmp_path / "result"), f"oci:{layout}", base=base)
    manifest = json.loads((layout / "export.json").read_text())
    assert manifest["schema"] == documents.EXPORT
    require_valid(manifest)
    require_valid(exported.as_dict())
    assert {**exported.as_dict(), "path": 0, "bytes": 0} == {**manifest, "path": 0, "bytes": 0}


def test_a_base_is_found_by_its_tag_or_refused(tmp_path: Path) -> None:
    result, layout = write_result(tmp_path / "result"), write_base(tmp_path / "base")
    entry = images(layout)[0]
    two = [{**entry, "annotations": {"org.opencontainers.image.ref.name": name}} for name in ("a", "b")]
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": two}))
    with pytest.raises(MissingError, match="has 2 images"):
        vllm_variants.export_results(result, f"oci:{tmp_path / 'image'}", base=f"oci:{layout}")
    vllm_variants.export_results(result, f"oci:{tmp_path / 'image'}", base=f"oci:{layout}:b")


def test_a_damaged_base_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    result, layout = write_result(tmp_path / "result"), write_base(tmp_path / "base")
    layer = document(layout, images(layout)[0])["layers"][0]["digest"].partition(":")[2]
    (layout / "blobs" / "sha256" / layer).write_bytes(b"other")
    for to in ("oci", "oci-archive"):
        with pytest.raises(InputError, match="is damaged"):
            vllm_variants.export_results(result, f"{to}:{tmp_path / 'image'}", base=f"oci:{layout}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "result"]


BROKEN: dict[str, Callable[[Any, Any], object]] = {
    "a layer without a size": lambda manifest, config: manifest["layers"][0].pop("size"),
    "a layer of another size": lambda manifest, config: manifest["layers"][0].update(size=5),
    "a layer without a kind": lambda manifest, config: manifest["layers"][0].pop("mediaType"),
    "a layer that is not there": lambda manifest, config: manifest["layers"][0].update(
        digest=f"sha256:{0:064}"
    ),
    "a diff ID too few": lambda manifest, config: config["rootfs"].update(diff_ids=[]),
    "variables that are no texts": lambda manifest, config: config["config"].update(Env=[1]),
    "a list of labels": lambda manifest, config: config["config"].update(Labels=["a"]),
    "a list for a configuration": lambda manifest, config: config.update(config=[1]),
    "a text for a history": lambda manifest, config: config.update(history="x"),
    "another system": lambda manifest, config: config.update(os="windows"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_base_that_is_broken_is_refused_before_work_starts(broken: str, tmp_path: Path) -> None:
    layout = write_base(tmp_path / "base", BROKEN[broken])
    with pytest.raises(InputError, match=r"base.* (is no image layout|is damaged|is for windows)"):
        vllm_variants.export_results(
            write_result(tmp_path / "result"), f"oci:{tmp_path / 'image'}", base=f"oci:{layout}"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "result"]


def test_gzip_on_a_base_of_zstd_is_refused(tmp_path: Path, base: str) -> None:
    result, on_zstd = write_result(tmp_path / "result"), f"oci:{tmp_path / 'zstd'}"
    vllm_variants.export_results(result, on_zstd, base=base)
    with pytest.raises(UsageError, match=r"layers of .* are zstd"):
        vllm_variants.export_results(result, f"oci:{tmp_path / 'gzip'}", base=on_zstd, gzip=True)


def test_where_the_base_lies_is_not_told(tmp_path: Path) -> None:
    result = write_result(tmp_path / "result")
    shutil.copytree(write_base(tmp_path / "one"), tmp_path / "another")
    for name, base in (("a", "one"), ("b", "another")):
        vllm_variants.export_results(
            result, f"oci-archive:{tmp_path / name}.tar", base=f"oci:{tmp_path / base}"
        )
    made = (tmp_path / "a.tar").read_bytes()
    assert str(tmp_path).encode() not in made
    assert made == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("base", ["oci:/nowhere", "debian", "debian:Trixie", "docker://debian", "/nowhere"])
def test_what_is_no_base_is_refused_with_what_is(base: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, MissingError)) as refused:
        vllm_variants.export_results(
            write_result(tmp_path / "result"), f"oci:{tmp_path / 'image'}", base=base
        )
    assert refused.value.hint


def test_a_path_with_a_colon_is_refused(tmp_path: Path, base: str) -> None:
    with pytest.raises(UsageError, match="colon"):
        vllm_variants.export_results(write_result(tmp_path / "r"), f"oci:{tmp_path / 'image:1'}", base=base)


def test_a_base_with_an_older_glibc_than_python_wants_is_refused(small_python: Runtime) -> None:
    made: Any = SimpleNamespace(runtime=small_python)
    oci._require_glibc(made, Base("debian:old", (), (), {}, "2.28"))
    with pytest.raises(UsageError, match=r"has glibc 2\.27, and .* needs 2\.28"):
        oci._require_glibc(made, Base("debian:old", (), (), {}, "2.27"))


@pytest.mark.parametrize("where", ["registry/name", "docker://", "docker://name", "docker://a/b@sha256:0"])
def test_what_names_no_repository_is_refused(where: str) -> None:
    with pytest.raises(UsageError, match="names no repository"):
        push.require(where, 1)


def test_several_images_do_not_go_to_one_tag() -> None:
    with pytest.raises(UsageError, match="one tag, for 2 images"):
        push.require("docker://registry/name:tag", 2)


def test_a_push_without_skopeo_is_refused_before_work_starts(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="skopeo"):
        vllm_variants.export_results(
            write_result(tmp_path / "r"),
            f"oci:{tmp_path / 'image'}",
            base=base,
            push="docker://registry/name",
        )
    assert not (tmp_path / "image").exists()


def test_a_registry_that_refuses_is_one_sentence_and_the_layout_stays(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skopeo = tmp_path / "bin" / "skopeo"
    skopeo.parent.mkdir()
    skopeo.write_text(
        """#!/bin/sh\necho 'time="now" level=fatal msg="reading: \\"no\\" entry"' >&2; exit 1\n"""
    )
    skopeo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{skopeo.parent}:/usr/bin:/bin")
    with pytest.raises(Error, match='reading: "no" entry') as refused:
        vllm_variants.export_results(
            write_result(tmp_path / "r"),
            f"oci:{tmp_path / 'image'}",
            base=base,
            push="docker://registry/name",
        )
    assert "skopeo copy" in (refused.value.hint or "")
    assert (tmp_path / "image" / "index.json").is_file()


@pytest.mark.parametrize("to", ["oci", "oci-archive"])
def test_what_fails_in_the_middle_leaves_nothing(to: str, tmp_path: Path, base: str) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vllm_variants.export_results(
            write_result(tmp_path / "result"), f"{to}:{tmp_path / 'image'}", base=base, progress=fail
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "result"]


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("usr/share/doc/gcc/copyright", True),
        ("usr/share/doc/gcc/README", False),
        ("etc/hostname", False),
        ("etc/resolv.conf", False),
        ("var/lib/dpkg/status", False),
        ("usr/bin/gcc", True),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", True),
        ("dev/null", False),
    ],
)
def test_nothing_of_this_machine_is_in_a_base_of_debian(path: str, kept: bool) -> None:
    assert _is_kept(path) == kept
