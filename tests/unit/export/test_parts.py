"""What an export says of its parts that are no Python packages: CPython, libraries of the host, Debian."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

import vllm_variants
from unit.export.conftest import MINOR, take, write_base, write_result
from vllm_variants.export import base_debian, debian_copyright, host_packages
from vllm_variants.export.interpreter import Runtime
from vllm_variants.export.layout import LICENCES
from vllm_variants.export.others import Other
from vllm_variants.system import process
from vllm_variants.system.process import CompletedCommand

DEP5 = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Files: *
License: LGPL-2.1+
 See /usr/share/common-licenses/LGPL-2.1.

License: BSD-3-clause
"""


def test_a_copyright_file_for_machines_names_its_licences_and_another_does_not() -> None:
    assert debian_copyright.licences(DEP5) == ["BSD-3-clause", "LGPL-2.1+"]
    assert debian_copyright.licences("It is free.\nLicense: GPL") == []
    assert debian_copyright.common(DEP5) == ["LGPL-2.1"]


def test_a_library_is_its_package_s_or_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "--search": "libssl3:amd64: /usr/lib/x86_64-linux-gnu/libssl.so.3\ndpkg-query: no path\n",
        "--show": "libssl3:amd64\tlibssl3\t3.0.19-1~deb12u2\tamd64\n",
    }

    def capture(command: list[str], **_: object) -> CompletedCommand:
        return CompletedCommand(1, answers[command[1]], "")

    monkeypatch.setattr(process, "capture", capture)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    found = host_packages.of([Path("/lib/x86_64-linux-gnu/libssl.so.3"), Path("/opt/libown.so.1")])
    assert [part.name for part in found] == ["libown.so.1", "libssl3"]
    assert found[0].purl == "pkg:generic/libown.so.1"
    assert found[1].version == "3.0.19-1~deb12u2"
    assert found[1].notes == "of this package: libssl.so.3"


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="needs dpkg: this host has no packages of Debian")
def test_this_host_s_own_libraries_have_a_version_and_a_text() -> None:
    (found,) = host_packages.of([Path(shutil.which("dpkg-query") or "")])
    assert found.name == "dpkg"
    assert found.version
    assert [text.name for text in found.texts] == ["copyright"]


def test_the_copy_of_python_says_what_it_is_made_of(python: Runtime) -> None:
    names = [part.name for part in python.parts]
    assert names[0] == "cpython"
    assert not [name for name in names if name.startswith("libpython")]
    on_host = {part.name for part in python.parts[1:] if part.purl.startswith(("pkg:deb/", "pkg:generic/"))}
    assert on_host  # libgcc_s and libstdc++ at least, which are taken for machines without


def test_texts_of_other_parts_come_along_with_those_they_point_to(
    tmp_path: Path, small_python: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "copyright"
    text.write_text(DEP5)
    part = Other("libc6", "2.41", "pkg:deb/debian/libc6@2.41", ("LGPL-2.1+",), "of this package: a", (text,))
    take(Runtime(**{**vars(small_python), "parts": (part,)}), monkeypatch)
    vllm_variants.export_results(write_result(tmp_path / "result"), f"folder:{tmp_path / 'made'}")
    share = tmp_path / "made" / "share" / "vllm-variants"
    assert (share / "licences" / "libc6" / "copyright").read_text() == DEP5
    assert (share / "licences" / "common-licenses" / "LGPL-2.1").is_file() == Path(
        "/usr/share/common-licenses/LGPL-2.1"
    ).is_file()
    assert "| libc6 2.41 | LGPL-2.1+ | 1 | of this package: a |" in (share / "licences/README.md").read_text()
    components = json.loads((share / "sbom.cdx.json").read_text())["components"]
    assert "pkg:deb/debian/libc6@2.41" in {component["purl"] for component in components}


@pytest.mark.usefixtures("made_before")
def test_an_image_says_its_licence_and_that_of_its_base(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    exported = vllm_variants.export_results(
        write_result(tmp_path / "result"), f"oci:{tmp_path / 'image'}", base=f"oci:{base}"
    )
    index = json.loads((tmp_path / "image" / "index.json").read_text())
    (described,) = index["manifests"]
    assert described["annotations"][LICENCES] == "MIT AND LicenseRef-base-image"
    digest = described["digest"].partition(":")[2]
    manifest = json.loads((tmp_path / "image" / "blobs" / "sha256" / digest).read_text())
    config = tmp_path / "image" / "blobs" / "sha256" / manifest["config"]["digest"].partition(":")[2]
    assert json.loads(config.read_text())["config"]["Labels"][LICENCES] == "MIT AND LicenseRef-base-image"
    assert exported.bytes > 0


def test_debian_s_packages_are_parts_with_what_their_copyright_says(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        member = tarfile.TarInfo("./usr/share/doc/libc6/copyright")
        member.size = len(DEP5.encode())
        archive.addfile(member, io.BytesIO(DEP5.encode()))
    fields = [
        "Package: libc6\nVersion: 2.41-12\nArchitecture: amd64\n",
        "Package: bare\nVersion: 1\nArchitecture: all\n",
    ]
    with tarfile.open(tmp_path / "base.tar") as archive:
        libc, bare = base_debian._parts(archive, fields)
    assert libc.purl == "pkg:deb/debian/libc6@2.41-12?arch=amd64"
    assert libc.licences == ("BSD-3-clause", "LGPL-2.1+")
    assert "/usr/share/doc/libc6/copyright" in libc.notes
    assert bare.licences == ()


@pytest.mark.usefixtures("made_before")
def test_a_layer_that_two_images_have_is_compressed_once(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_variants.export.image_writer import ImageWriter

    names: list[str] = []
    packed = ImageWriter._packed

    def counted(self: ImageWriter, name: str, add_to: object) -> object:
        names.append(name)
        return packed(self, name, add_to)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageWriter, "_packed", counted)
    results = [write_result(tmp_path / short, short) for short in ("sm80", "sm90")]
    vllm_variants.export_results(results, f"oci:{tmp_path / 'both'}", base=base)
    assert names.count(f"Python {MINOR}.0") == 1
    assert names.count("packages") == 1
    assert names.count("launchers and manifests") == 2
