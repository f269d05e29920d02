"""Wheelhouses: what is in the wheels, what lists them, and every way to fail."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
import toy_results
from toy_results import HOST, World, contents, sha256
from validating import require_valid

from vllm_variants import api, audit
from vllm_variants.builders.wheels.records import encoded
from vllm_variants.errors import Error, InputError, MissingError, ResourceError, UsageError
from vllm_variants.export import canonical_zip, facts, licences, sbom
from vllm_variants.export.others import Other
from vllm_variants.machine import interpreters
from vllm_variants.model.results import DamagedError, Result
from vllm_variants.store import disk
from vllm_variants.system import folders, uv

try:
    interpreters.find(toy_results.MATRIX.default.stack.python)
except MissingError as absent:
    pytest.skip(f"the builder needs Python: {absent.message}", allow_module_level=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with toy_results.world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def result(world: World) -> Result:
    return world.build("9.0")


@pytest.fixture(scope="module")
def wheelhouse(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(result, tmp_path_factory.mktemp("exported") / "wheels")


@pytest.fixture(scope="module")
def variants(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    several = [world.build(device) for device in ("9.0", "8.0", "12.0")]
    to = tmp_path_factory.mktemp("exported") / "variants"
    api.export_results([result.path for result in several], f"wheels:{to}", variants=True)
    return to


def export(result: Result, to: Path, **options: Any) -> Path:
    api.export_results(result.path, f"wheels:{to}", **options)
    return to


def test_the_index_is_asked_where_no_python_is_on_the_path(
    result: Result, wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the one that built was named by --python."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    again = export(result, tmp_path / "wheels")
    assert torch_in(again).read_bytes() == torch_in(wheelhouse).read_bytes()


def torch_in(folder: Path) -> Path:
    (wheel,) = folder.glob("torch-*.whl")
    return wheel


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# ── the wheels ──


def test_a_changed_package_is_named_by_a_local_version(wheelhouse: Path) -> None:
    tag = f"cp312-cp312-manylinux_2_28_{HOST.partition('-')[0]}"
    assert torch_in(wheelhouse).name == f"torch-2.9.1+sm90-{tag}.whl"
    metadata = contents(torch_in(wheelhouse))["torch-2.9.1+sm90.dist-info/METADATA"].decode()
    assert "\nVersion: 2.9.1+sm90\n" in metadata


def test_the_record_of_a_repacked_wheel_is_true(wheelhouse: Path) -> None:
    import hashlib

    files = contents(torch_in(wheelhouse))
    rows = list(csv.reader(files["torch-2.9.1+sm90.dist-info/RECORD"].decode().splitlines()))
    assert rows.pop() == ["torch-2.9.1+sm90.dist-info/RECORD", "", ""]
    assert {name for name, _, _ in rows} == files.keys() - {"torch-2.9.1+sm90.dist-info/RECORD"}
    for name, digest, size in rows:
        assert (digest, int(size)) == (encoded(hashlib.sha256(files[name])), len(files[name]))


def test_a_repacked_wheel_holds_what_the_published_one_does_but_what_was_changed(
    world: World, wheelhouse: Path
) -> None:
    renamed = {
        name.replace("torch-2.9.1.", "torch-2.9.1+sm90."): data
        for name, data in contents(world.published("torch")).items()
    }
    repacked = contents(torch_in(wheelhouse))
    info = "torch-2.9.1+sm90.dist-info"
    assert repacked.keys() - renamed.keys() == {f"{info}/vllm_variants.json"}
    different = {name for name, data in renamed.items() if repacked.get(name) != data}
    assert different == {f"{info}/{n}" for n in ("METADATA", "RECORD")} | {"torch/lib/libtorch_cuda.so"}
    assert len(repacked["torch/lib/libtorch_cuda.so"]) < len(renamed["torch/lib/libtorch_cuda.so"])


def test_nothing_of_the_installer_and_no_bytecode_is_in_a_repacked_wheel(wheelhouse: Path) -> None:
    names = contents(torch_in(wheelhouse)).keys()
    assert not [name for name in names if name.endswith((".pyc", "INSTALLER", "REQUESTED", "torchrun"))]


def test_a_repacked_wheel_is_a_canonical_zip_file(wheelhouse: Path) -> None:
    with zipfile.ZipFile(torch_in(wheelhouse)) as wheel:
        members = wheel.infolist()
    inside = [".dist-info/" in member.filename for member in members]
    assert inside == sorted(inside) and members[-1].filename.endswith("/RECORD")
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    modes = {member.filename: stat.S_IMODE(member.external_attr >> 16) for member in members}
    assert modes.pop("torch-2.9.1+sm90.data/scripts/torch-tool") == 0o755
    assert set(modes.values()) == {0o644}


def test_what_does_not_get_smaller_is_stored(tmp_path: Path) -> None:
    from vllm_variants.export.members import Member

    (tmp_path / "random").write_bytes(os.urandom(1 << 20))
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    members = [Member(name, tmp_path / name) for name in ("random", "zeros")]
    canonical_zip.write(tmp_path / "a.whl", members, "a-1.dist-info/RECORD", lambda count: None)
    with zipfile.ZipFile(tmp_path / "a.whl") as wheel:
        kinds = {member.filename: member.compress_type for member in wheel.infolist()}
        assert wheel.read("random") == (tmp_path / "random").read_bytes()
    assert (kinds["random"], kinds["zeros"]) == (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def test_a_repacked_wheel_says_of_what_it_was_made(world: World, wheelhouse: Path) -> None:
    document = json.loads(
        contents(torch_in(wheelhouse))["torch-2.9.1+sm90.dist-info/vllm_variants.json"].decode()
    )
    require_valid(document)
    published = world.published("torch")
    assert document["source"] == {"file": published.name, "sha256": sha256(published)}
    assert (document["sm"], document["version"]) == ("sm90", "2.9.1+sm90")
    (file,) = document["files"]
    assert file["path"] == "torch/lib/libtorch_cuda.so" and file["after"] < file["before"]


def test_requirements_that_the_release_does_not_keep_are_corrected(wheelhouse: Path) -> None:
    metadata = contents(torch_in(wheelhouse))["torch-2.9.1+sm90.dist-info/METADATA"].decode()
    head, _, body = metadata.partition("\n\n")
    lines = [line for line in head.splitlines() if line.startswith("Requires-Dist")]
    assert lines == [
        "Requires-Dist: plain==1.1",
        "Requires-Dist: plain>=1.0",
        "Requires-Dist: other; extra == 'other'",
    ]
    assert body == "Requires-Dist: plain==1.0\nis only text.\n"


def test_a_local_version_is_put_behind_the_one_that_is_there() -> None:
    from vllm_variants.export.repack import local_version

    assert local_version("2.9.1+cu129", "sm90") == "2.9.1+cu129.sm90"
    assert local_version("2.9.1", "sm90") == "2.9.1+sm90"


# ── the lists ──


def test_the_others_are_named_by_their_hashes_only(world: World, wheelhouse: Path) -> None:
    assert {path.name.partition("-")[0] for path in wheelhouse.glob("*.whl")} == {"torch"}
    text = (wheelhouse / "requirements.txt").read_text()
    assert f"plain==1.1 \\\n    --hash=sha256:{sha256(world.published('plain'))}\n" in text
    assert f"torch==2.9.1+sm90 \\\n    --hash=sha256:{sha256(torch_in(wheelhouse))}\n" in text
    assert str(wheelhouse) not in text


def test_the_manifest_names_every_wheel(wheelhouse: Path) -> None:
    manifest = read(wheelhouse / "export.json")
    require_valid(manifest)
    entries = {entry["name"]: entry for entry in manifest["wheels"]}
    assert {name: entry["repacked"] for name, entry in entries.items()} == {
        "plain": False,
        "torch": True,
        "vllm": False,
    }
    assert entries["torch"]["sha256"] == sha256(torch_in(wheelhouse))
    assert entries["torch"]["bytes"] == torch_in(wheelhouse).stat().st_size


def test_all_has_the_published_wheels_as_they_are(world: World, result: Result, tmp_path: Path) -> None:
    folder = export(result, tmp_path / "wheels", all_wheels=True)
    for name in ("plain", "vllm"):
        published = world.published(name)
        assert (folder / published.name).read_bytes() == published.read_bytes()
    assert "\n--no-index\n" in (folder / "requirements.txt").read_text()
    assert not list(folder.glob(".*"))


def test_the_same_result_gives_the_same_bytes_from_any_folder(
    result: Result, wheelhouse: Path, tmp_path: Path
) -> None:
    shutil.copytree(result.path, tmp_path / "moved", symlinks=True)
    again = tmp_path / "other place" / "wheels"
    again.parent.mkdir()
    api.export_results(tmp_path / "moved", f"wheels:{again}")
    assert tree(again) == tree(wheelhouse)


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (stat.S_IMODE(path.stat().st_mode), sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_wheelhouse_is_readable_for_everybody(wheelhouse: Path) -> None:
    assert stat.S_IMODE(wheelhouse.stat().st_mode) & 0o055 == 0o055


def test_audit_reads_a_wheelhouse(result: Result, wheelhouse: Path) -> None:
    there = audit.audit_tree(wheelhouse, result.manifest.capability)
    built = audit.audit_tree(result.path, result.manifest.capability)
    assert there.verdict == built.verdict and there.libraries
    assert [library.path.rpartition("!")[2].rpartition("/")[2] for library in there.libraries] == [
        library.path.rpartition("/")[2] for library in built.libraries
    ]


def test_a_killed_wheelhouse_is_not_there_and_the_next_sweeps_what_it_left(
    result: Result, tmp_path: Path
) -> None:
    to = f"wheels:{tmp_path / 'wheels'}"
    child = os.fork()
    if not child:
        api.export_results(result.path, to, progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".wheels.")
    api.export_results(result.path, to)
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


# ── licences and the bill of materials ──


def test_the_bill_of_materials_is_valid_cyclonedx(wheelhouse: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (wheelhouse / sbom.FILE).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    components = {component["name"]: component for component in bill["components"]}
    assert components.keys() == {"torch", "plain", "vllm"}
    assert components["torch"]["purl"] == "pkg:pypi/torch@2.9.1%2Bsm90"
    assert components["torch"]["licenses"] == [{"license": {"id": "BSD-3-Clause"}}]
    assert components["torch"]["pedigree"]["ancestors"][0]["version"] == "2.9.1"
    assert components["torch"]["hashes"][0]["content"] == sha256(torch_in(wheelhouse))
    assert "pedigree" not in components["plain"]
    needs = {entry["ref"]: entry.get("dependsOn") for entry in bill["dependencies"]}
    assert needs["pkg:pypi/torch@2.9.1%2Bsm90"] == ["pkg:pypi/plain@1.1"]


def test_the_licences_of_what_is_in_it_are_there(wheelhouse: Path) -> None:
    text = wheelhouse / "licences" / "torch-2.9.1" / "licenses" / "LICENSE"
    assert text.read_text() == toy_results.TERMS
    page = (wheelhouse / "licences" / "README.md").read_text()
    assert "| torch 2.9.1 | BSD-3-Clause | 1 | changed |" in page
    assert "| plain 1.1 | MIT | 0 |  |" in page
    assert licences.NVIDIA.rstrip() in page


def test_an_export_says_what_nvidia_s_terms_are(result: Result, tmp_path: Path) -> None:
    lines: list[str] = []
    api.export_results(result.path, f"wheels:{tmp_path / 'wheels'}", say=lines.append)
    assert licences.NOTICE in lines


def test_other_exports_get_the_same_facts_without_an_index(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uv, "capture", None)
    libc = Other("libc6", "2.41-12", "pkg:deb/debian/libc6@2.41-12", ("LGPL-2.1-or-later",))
    licence = facts.write(result, tmp_path, [libc])
    assert (
        licence
        == "BSD-3-Clause AND MIT AND LicenseRef-copyright-files-of-the-distribution AND LicenseRef-vllm"
    )
    bill = read(tmp_path / sbom.FILE)
    assert {part["name"]: part["version"] for part in bill["components"]} == {
        "libc6": "2.41-12",
        "plain": "1.1",
        "torch": "2.9.1",
        "vllm": "0.13.0",
    }
    assert (tmp_path / "licences" / "README.md").is_file()


# ── installers ──


def environment(folder: Path) -> Path:
    interpreter = interpreters.find(toy_results.MATRIX.default.stack.python)
    run([uv.program(), "venv", "--quiet", "--python", interpreter.path, folder])
    return folder / "bin" / "python"


def run(command: list[str | Path], **env: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    completed = subprocess.run(command, env={**inherited, **env}, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def version_of(python: Path, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return run([python, "-c", code]).strip()


def test_uv_installs_from_it_and_finds_the_set_sound(wheelhouse: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    requirements = wheelhouse / "requirements.txt"
    run([uv.program(), "pip", "sync", "--quiet", "--require-hashes", "--python", python, requirements])
    run([uv.program(), "pip", "check", "--quiet", "--python", python])
    assert version_of(python, "torch") == "2.9.1+sm90"
    assert run([python.parent / "torch-tool"]).strip() == "a program of a wheel"
    assert (tmp_path / "env" / "share" / "man" / "torch.1").is_file()


def test_pip_installs_from_it_without_an_index_and_finds_the_set_sound(
    result: Result, tmp_path: Path
) -> None:
    folder = export(result, tmp_path / "wheels", all_wheels=True)
    python = environment(tmp_path / "env")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--isolated", "--python", python]
    run([*pip, "install", "--quiet", "--require-hashes", "-r", folder / "requirements.txt"])
    run([*pip, "check"])
    assert version_of(python, "torch") == "2.9.1+sm90"
    found = tmp_path / "found"
    run([*pip, "download", "--quiet", "--no-index", "--find-links", folder, "-d", found, "torch==2.9.1"])
    assert {path.name.partition("-")[0] for path in found.iterdir()} == {"torch", "plain"}


# ── variant wheels ──


def test_variant_wheels_of_several_sms_lie_side_by_side(variants: Path) -> None:
    labels = sorted(path.stem.rpartition("-")[2] for path in variants.glob("torch-*.whl"))
    assert labels == ["sm120", "sm80", "sm90"]
    index = read(variants / "torch-2.9.1-variants.json")
    assert index["variants"]["sm90"]["nvidia"]["sm_arch"] == ["90_real"]
    assert sorted(index["variants"]) == labels
    (wheel,) = variants.glob("torch-*-sm90.whl")
    inside = json.loads(contents(wheel)["torch-2.9.1.dist-info/variant.json"])
    assert inside == {**index, "variants": {"sm90": index["variants"]["sm90"]}}
    require_valid(read(variants / "export.json"))


@pytest.mark.parametrize(
    ("device", "picked"), [("8.6", "sm80"), ("9.0", "sm90"), ("12.1", "sm120"), ("7.5", None), (None, None)]
)
def test_uv_picks_the_variant_that_the_card_runs(
    variants: Path, tmp_path: Path, device: str | None, picked: str | None
) -> None:
    python = environment(tmp_path / "env")
    card = (
        {"NV_VARIANT_PROVIDER_FORCE_SM_ARCH": device, "NV_VARIANT_PROVIDER_FORCE_CUDA_DRIVER_VERSION": "13.0"}
        if device
        else {}
    )
    command: list[str | Path] = [uv.program(), "pip", "sync", "--preview-features", "wheel-variants"]
    command += ["--quiet", "--require-hashes", "--python", python, variants / "requirements.txt"]
    run(command, **card)
    found = list((tmp_path / "env").rglob("torch-2.9.1.dist-info/vllm_variants.json"))
    assert [read(path)["sm"] for path in found] == ([picked] if picked else [])
    assert version_of(python, "torch") == "2.9.1"


# ── failures ──


def mistakes(world: World, result: Result, tmp_path: Path) -> Iterator[tuple[str, list[Path], str]]:
    """What is asked for, and what a person reads."""
    to = tmp_path / "wheels"
    (tmp_path / "there").mkdir()
    shutil.copytree(result.path, tmp_path / "damaged", symlinks=True)
    (file,) = (tmp_path / "damaged").rglob("torch/version.py")
    file.write_text("__version__ = '2.9.2'\n")
    shutil.copytree(result.path, tmp_path / "lost", symlinks=True)
    (file,) = (tmp_path / "lost").rglob("torch/version.py")
    file.unlink()
    shutil.copytree(result.path, tmp_path / "other-lock", symlinks=True)
    manifest = tmp_path / "other-lock" / "share" / "vllm-variants" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(result.manifest.facts["lock"], "sha256:0"))
    yield "wheels", [tmp_path / "nothing"], f"wheels:{to}"
    yield "wheels", [result.path], f"wheels:{tmp_path / 'there'}"
    yield "wheels", [result.path], f"wheels:{tmp_path / 'no' / 'such'}"
    yield "wheels", [tmp_path / "damaged"], f"wheels:{to}"
    yield "wheels", [tmp_path / "lost"], f"wheels:{to}"
    yield "wheels", [tmp_path / "other-lock"], f"wheels:{to}"
    yield "wheels", [result.path, world.build("8.0").path], f"wheels:{to}"


def test_a_mistake_is_one_sentence_with_its_code_and_leaves_nothing(
    world: World, result: Result, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    said = []
    for _, paths, to in mistakes(world, result, tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(Error) as raised:
            api.export_results(paths, to)
        assert sorted(tmp_path.iterdir()) == before
        said.append(f"exit code: {raised.value.exit_code.value}\n{raised.value}\n")
    snapshot = Path(__file__).parents[2] / "snapshots" / "wheelhouse.txt"
    text = "\n".join(said).replace(str(tmp_path), "<folder>").replace(str(result.path), "<result>")
    text = text.replace(HOST.partition("-")[0], "<machine>")
    if request.config.getoption("--update-snapshots"):
        snapshot.write_text(text)
    assert text == snapshot.read_text()


def test_variants_of_two_releases_do_not_go_together(world: World, result: Result, tmp_path: Path) -> None:
    shutil.copytree(world.build("8.0").path, tmp_path / "other", symlinks=True)
    manifest = tmp_path / "other" / "share" / "vllm-variants" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"release": "0.13.0"', '"release": "0.11.2"'))
    with pytest.raises(UsageError, match="made of different wheels"):
        api.export_results([result.path, tmp_path / "other"], f"wheels:{tmp_path / 'to'}", variants=True)


def test_a_disk_that_gets_full_leaves_nothing(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "sync_file_system", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        export(result, tmp_path / "wheels")
    assert not list(tmp_path.iterdir())


def test_room_is_looked_at_before_work_starts(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "free_bytes", lambda folder: 1)
    monkeypatch.setattr(canonical_zip, "write", None)
    with pytest.raises(ResourceError, match=r"wheels:.* needs 0\.\d\d GB"):
        export(result, tmp_path / "wheels")


def test_an_index_that_cannot_be_reached_is_named(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(ResourceError, match="did not say which wheels sm90") as raised:
        export(result, tmp_path / "wheels")
    assert raised.value.hint
    assert not (tmp_path / "wheels").exists()


def test_a_published_wheel_that_is_another_is_refused(world: World, result: Result, tmp_path: Path) -> None:
    published = world.published("plain")
    good = published.read_bytes()
    published.write_bytes(good + b"more")
    try:
        with pytest.raises(ResourceError, match="could not be downloaded"):
            export(result, tmp_path / "wheels", all_wheels=True)
    finally:
        published.write_bytes(good)
    assert not (tmp_path / "wheels").exists()


def test_a_wheelhouse_that_was_killed_is_swept_by_the_next(result: Result, tmp_path: Path) -> None:
    left = tmp_path / ".wheels.0123456789ab.vllm-variants-new"
    left.mkdir()
    (left / ".vllm-variants-writer").touch()
    (left / "torch-2.9.1+sm90-cp312-cp312-linux_x86_64.whl").write_bytes(b"half")
    export(result, tmp_path / "wheels")
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


def test_damage_names_the_file(result: Result, tmp_path: Path) -> None:
    shutil.copytree(result.path, tmp_path / "copy", symlinks=True)
    (library,) = (tmp_path / "copy").rglob("libtorch_cuda.so")
    data = bytearray(library.read_bytes())
    data[-1] ^= 1
    library.chmod(0o644)
    library.write_bytes(data)
    with pytest.raises(DamagedError, match=r"libtorch_cuda\.so is not the file that its RECORD lists"):
        api.export_results(tmp_path / "copy", f"wheels:{tmp_path / 'wheels'}")
    assert isinstance(DamagedError("x"), InputError)
