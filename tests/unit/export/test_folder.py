"""The forms `folder` and `tar.zst`: they run elsewhere, and depend on nothing but the result."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

import vllm_variants
from unit.export.conftest import MINOR, SITE, contents, take, write_result
from unit.validating import require_valid
from vllm_variants import documents
from vllm_variants.builders.wheels.records import encoded
from vllm_variants.errors import InputError, UnsupportedError, UsageError
from vllm_variants.export.interpreter import Runtime
from vllm_variants.model import results
from vllm_variants.model.results import DamagedError
from vllm_variants.system import new_folder

pytestmark = pytest.mark.usefixtures("made_before")


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    variables = {"PATH": "/usr/bin:/bin", **(env or {})}
    return subprocess.run(
        [*map(str, command)], env=variables, check=True, capture_output=True, text=True
    ).stdout


def test_it_runs_after_a_move_with_nothing_of_the_host(
    tmp_path: Path, python: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(python, monkeypatch)
    vllm_variants.export_results(write_result(tmp_path / "result"), f"folder:{tmp_path / 'made'}")
    shutil.rmtree(tmp_path / "result")
    moved = tmp_path / "a folder" / "moved"
    moved.parent.mkdir()
    (tmp_path / "made").rename(moved)
    foreign = {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"}
    script = (
        "import sys, ssl, ctypes, sqlite3, idna; print(sys.prefix, idna.__file__, sys.flags.no_user_site)"
    )
    assert run(moved / "bin" / "python", "-c", script, env=foreign).split("\n")[0] == (
        f"{moved} {moved / SITE}/idna/__init__.py 1"
    )
    assert run(moved / "bin" / "python", "-c", "import os; print(os.environ['LOGNAME'])").strip()
    (tmp_path / "linked").symlink_to(moved / "bin" / "vllm")
    assert run(tmp_path / "linked").strip() == f"{moved / SITE}/vllm/__init__.py"


def test_it_is_readable_for_all_and_has_no_link_out_of_itself(tmp_path: Path) -> None:
    result = write_result(tmp_path / "result")
    (result / SITE / "idna" / "__init__.py").chmod(0o600)
    made = tmp_path / "made"
    vllm_variants.export_results(result, f"folder:{made}")
    for path in [made, *made.rglob("*")]:
        if path.is_symlink():
            assert path.resolve().is_relative_to(made)
            assert path.exists()
        else:
            mode = path.stat().st_mode & 0o777
            assert mode == (0o755 if path.is_dir() or (os.access(path, os.X_OK) and mode & 0o100) else 0o644)


def test_it_is_a_result_with_the_licences_and_the_manifest_of_the_export(tmp_path: Path) -> None:
    made = tmp_path / "made"
    exported = vllm_variants.export_results(write_result(tmp_path / "result"), f"folder:{made}")
    share = made / "share" / "vllm-variants"
    assert results.read(made).manifest.short == "sm90"
    assert json.loads((share / "sbom.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    assert list((share / "licences").rglob("LICENSE"))
    manifest = json.loads((share / "export.json").read_text())
    assert manifest["schema"] == documents.EXPORT
    require_valid(manifest)
    require_valid(exported.as_dict())
    assert {**exported.as_dict(), "path": "", "bytes": 0} == {**manifest, "path": "", "bytes": 0}
    assert str(tmp_path) not in (share / "export.json").read_text()


def test_the_same_result_gives_the_same_bytes_wherever_it_lies_and_whenever_it_was_built(
    tmp_path: Path,
) -> None:
    first = write_result(tmp_path / "one" / "result")
    second = write_result(tmp_path / "another place" / "result", created="2027-01-01T00:00:00Z!")
    os.utime(second / SITE / "idna" / "__init__.py", (1, 1))
    for name, result in (("a", first), ("b", second)):
        vllm_variants.export_results(result, f"folder:{tmp_path / name}")
        vllm_variants.export_results(result, f"tar.zst:{tmp_path / name}.tar.zst")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "a.tar.zst").read_bytes() == (tmp_path / "b.tar.zst").read_bytes()


def test_an_archive_unpacks_to_the_folder(tmp_path: Path) -> None:
    result = write_result(tmp_path / "result")
    vllm_variants.export_results(result, f"folder:{tmp_path / 'folder'}")
    vllm_variants.export_results(result, f"tar.zst:{tmp_path / 'made.tar.zst'}")
    plain = zstandard.ZstdDecompressor().decompressobj().decompress((tmp_path / "made.tar.zst").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path / "unpacked", filter="tar")
    (top,) = (tmp_path / "unpacked").iterdir()
    assert top.name.endswith("sm90-0.13.0")
    unpacked, folder = contents(top), contents(tmp_path / "folder")
    assert unpacked == folder
    assert {member.mtime for member in members} == {315532800}
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}


def test_a_result_of_another_platform_is_refused(tmp_path: Path) -> None:
    result = write_result(tmp_path / "result", system="riscv64-linux")
    with pytest.raises(UnsupportedError, match="riscv64-linux"):
        vllm_variants.export_results(result, f"folder:{tmp_path / 'made'}")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_two_results_need_two_folders(tmp_path: Path) -> None:
    made = [write_result(tmp_path / short, short) for short in ("sm90", "sm80")]
    with pytest.raises(UsageError, match="takes one variant"):
        vllm_variants.export_results(made, f"folder:{tmp_path / 'made'}")


@pytest.mark.parametrize("to", ["folder:made", "tar.zst:made"])
def test_what_fails_in_the_middle_leaves_nothing(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = write_result(tmp_path / "result")

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        vllm_variants.export_results(result, to, progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = new_folder.publish

    def late(folder: Path, to: Path) -> None:
        to.mkdir()
        publish(folder, to)

    monkeypatch.setattr(new_folder, "publish", late)
    with pytest.raises(UsageError, match="exists already"):
        vllm_variants.export_results(write_result(tmp_path / "result"), f"folder:{tmp_path / 'made'}")
    assert list((tmp_path / "made").iterdir()) == []


def test_the_copy_of_python_has_what_a_compiler_of_launchers_needs(python: Runtime) -> None:
    program = python.path / "bin" / f"python{MINOR}"
    script = "import sysconfig; print(sysconfig.get_path('include'), sysconfig.get_config_var('prefix'))"
    include, prefix = run(program, "-I", "-B", "-c", script).split()
    assert include == str(python.path / "include" / f"python{MINOR}")
    assert prefix == str(python.path)
    assert (Path(include) / "Python.h").is_file()


@pytest.mark.parametrize("form", ["folder", "tar.zst", "oci", "oci-archive"])
@pytest.mark.parametrize("damage", ["another byte", "gone"])
def test_a_file_that_is_not_what_its_record_says_is_refused_and_leaves_nothing(
    form: str, damage: str, tmp_path: Path, base: str
) -> None:
    result = write_result(tmp_path / "result")
    kernel = result / SITE / "vllm" / "_C.abi3.so"
    if damage == "gone":
        kernel.unlink()
    else:
        kernel.write_bytes(kernel.read_bytes()[:-1] + b"?")
    options = {"base": base} if form.startswith("oci") else {}
    with pytest.raises(DamagedError, match="RECORD"):
        vllm_variants.export_results(result, f"{form}:{tmp_path / 'made'}", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "result"]


@pytest.mark.parametrize(
    ("form", "size"),
    [("folder", 3000), ("tar.zst", 3000), ("oci", 3000), ("oci-archive", 3000), ("folder", 7000)],
)
def test_a_file_that_changes_while_it_is_exported_is_named_and_leaves_nothing(
    form: str, size: int, tmp_path: Path, base: str
) -> None:
    result = write_result(tmp_path / "result")
    notes = result / SITE / "zz.txt"
    notes.write_bytes(bytes(5000))

    def write_to_it(done: int, total: int) -> None:
        notes.write_bytes(bytes(size))

    options = {"base": base} if form.startswith("oci") else {}
    with pytest.raises(DamagedError, match=r"zz\.txt was changed while it was exported"):
        vllm_variants.export_results(result, f"{form}:{tmp_path / 'made'}", progress=write_to_it, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "result"]


def test_a_program_that_is_called_like_python_is_taken_along(tmp_path: Path) -> None:
    result, data = write_result(tmp_path / "result"), b"#!/bin/sh\n"
    program = result / "bin" / "python-argcomplete-check"
    program.write_bytes(data)
    with (result / SITE / "idna-1.0.dist-info" / "RECORD").open("a") as record:
        record.write(f"../../../bin/{program.name},{encoded(hashlib.sha256(data))},{len(data)}\n")
    vllm_variants.export_results(result, f"folder:{tmp_path / 'made'}")
    assert (tmp_path / "made" / "bin" / program.name).read_bytes() == data


def test_a_link_out_of_the_result_is_refused_also_by_way_of_another_link(tmp_path: Path) -> None:
    result = write_result(tmp_path / "result")
    deep = result / SITE / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "above").symlink_to("../..")
    (deep / "beside").symlink_to("above/idna/__init__.py")
    (result / "..top").write_text("")
    (result / "top").symlink_to("..top")
    vllm_variants.export_results(result, f"folder:{tmp_path / 'made'}")
    assert (tmp_path / "made" / SITE / "a" / "b" / "beside").read_text() == "VALUE = 1\n"
    (deep / "out").symlink_to("above/../../../../secret")
    with pytest.raises(InputError, match="leads out of the result"):
        vllm_variants.export_results(result, f"folder:{tmp_path / 'other'}")
