"""The base of an image from Debian's packages: glibc, certificates, a C compiler for Triton, and a shell.

mmdebstrap fetches them through apt, which checks their signatures, and extracts them; none of their programs
is run. What maintainer scripts would have made and vLLM needs is made here. Nothing of this machine gets in.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from vllm_variants.errors import Error, MissingError, UsageError
from vllm_variants.export import debian_copyright, tarring
from vllm_variants.export.base_layout import Base
from vllm_variants.export.layout import LAYER, Descriptor, Layout
from vllm_variants.export.others import Other
from vllm_variants.export.tarring import Compression, Packed, TarWriter
from vllm_variants.export.tree import Text
from vllm_variants.system import process
from vllm_variants.system.progress import Say

SUITE = "trixie"
"""Debian 13: glibc 2.41, GCC 14."""
PACKAGES = (
    "base-files",
    "ca-certificates",
    "coreutils",
    "dash",
    "gcc",
    "libc-bin",
    "libc6-dev",
    "libstdc++6",
)
"""base-files says which system it is; libc-bin has ldconfig, by which Triton finds the driver."""
_NAMED = re.compile(r"debian:(?P<suite>[a-z][a-z0-9-]*)(@(?P<moment>\d{8}T\d{6}Z))?")
_LISTING = "packages.control"
_LEFT_OUT = (
    _LISTING,
    *(
        "dev/*",
        "proc/*",
        "sys/*",
        "run/*",
        "tmp/*",
        "boot/*",
        "media/*",
        "mnt/*",
        "home/*",
        "srv/*",
        "root/*",
    ),
    *("etc/hostname", "etc/resolv.conf", "etc/mtab", "etc/fstab", "etc/machine-id", "etc/apt*", "etc/dpkg*"),
    *("var/cache/*", "var/log/*", "var/lib/apt*", "var/lib/dpkg/*", "lib32", "libx32"),
    *("usr/share/man*", "usr/share/info*", "usr/share/locale*", "usr/share/lintian*", "usr/share/bug*"),
    *("usr/share/menu*", "usr/share/pixmaps*", "usr/share/gdb*", "usr/share/bash-completion*", "*/lto1"),
    *(
        "usr/lib/gcc/*/lib?san*",
        "usr/lib/gcc/*/libhwasan*",
        "usr/lib/*/lib?san.so*",
        "usr/lib/*/libhwasan.so*",
    ),
)
"""What is of the machine that fetched it, or nothing that vLLM or a compiler opens."""
_DOCS, _COPYRIGHT = "usr/share/doc/*", "usr/share/doc/*/copyright"
_MADE = (
    Text("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nvllm:x:1000:0:vLLM:/srv/vllm:/bin/sh\n"),
    Text("etc/group", b"root:x:0:\nvllm:x:1000:\n"),
    Text("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n"),
)


def is_named(text: str) -> bool:
    """Whether this names a Debian suite: `debian:trixie`, `debian:trixie@20261101T000000Z`."""
    return text.startswith("debian:")


def require(text: str) -> None:
    """Raise `UsageError` for what names no suite, `MissingError` without mmdebstrap."""
    if not _NAMED.fullmatch(text):
        raise UsageError(
            f"{text} names no Debian", hint="write debian:SUITE, or debian:SUITE@20261101T000000Z"
        )
    if not shutil.which("mmdebstrap"):
        raise MissingError(
            "an image stands on Debian packages, and mmdebstrap is not there to fetch them",
            hint="apt install mmdebstrap, or name an image: --base oci:DIR",
        )


def taken(text: str, system: str, layout: Layout, compression: Compression, work: Path, say: Say) -> Base:
    """The base of that name as one layer in `layout`; `work` is a folder to fetch packages into.

    With a moment the same packages come whenever it is made: Debian's snapshots have them. Raises as
    `require` does, and `Error` where packages cannot be fetched.
    """
    require(text)
    say(f"fetching packages of {text} …")
    archive = work / "base.tar"
    _fetch(text, system, archive)
    with layout.new_blob() as file:
        packed = Packed(file, compression)
        with tarfile.open(archive) as source, tarring.writing(packed) as writer:
            packages = _control_data(source)
            _write(source, packages, writer)
            glibc, parts = _glibc(source), tuple(_parts(source, packages))
        packed.finish()
        layout.keep(file, packed.digest)
    archive.unlink()
    kind = f"{LAYER}+{compression}"
    history = [{"created": "1980-01-01T00:00:00Z", "created_by": "vllm-variants export", "comment": text}]
    layer = Descriptor(kind, packed.digest, packed.size)
    return Base(text, (layer,), (packed.inner_digest,), {"history": history}, glibc, parts)


def _fetch(text: str, system: str, archive: Path) -> None:
    """Have mmdebstrap write the packages' files to `archive`, and their control data to a file in it.

    Without root it works as a user of a namespace of its own, who must get at the archive's folder.
    """
    archive.parent.chmod(0o711)
    match = _NAMED.fullmatch(text)
    assert match is not None
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[system.partition("-")[0]]
    listing = (
        f'for deb in "$1"/var/cache/apt/archives/*.deb; do dpkg-deb -f "$deb"; echo; done > "$1"/{_LISTING}'
    )
    command = [
        "mmdebstrap", "--variant=extract", "--format=tar", f"--architectures={architecture}",
        f"--include={','.join(PACKAGES)}", '--aptopt=Acquire::Languages "none"',
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--extract-hook={listing}",
        match["suite"], str(archive), *_sources(match["suite"], match["moment"]),
    ]  # fmt: skip
    completed = process.capture(command, env={**os.environ, "TMPDIR": str(archive.parent)})
    if completed.status or not archive.is_file():
        lines = [line for line in completed.stderr.splitlines() if line.startswith(("E:", "Err:"))]
        reason = (lines or completed.stderr.splitlines()[-1:] or ["it said nothing"])[0]
        raise Error(f"mmdebstrap could not fetch {text}: {reason}", hint="name an image: --base oci:DIR")


def _sources(suite: str, moment: str | None) -> list[str]:
    """Lines for apt's sources: none for Debian's own mirrors of today, or its snapshots of a moment."""
    if not moment:
        return []
    snapshots = "http://snapshot.debian.org/archive"
    options = "[check-valid-until=no]"
    return [
        f"deb {options} {snapshots}/debian/{moment} {suite} main",
        f"deb {options} {snapshots}/debian-security/{moment} {suite}-security main",
    ]


def _write(source: tarfile.TarFile, packages: list[str], writer: TarWriter) -> None:
    """Write what is kept of an archive, by name, with what is made, as one layer."""
    members = {member.name.removeprefix("./").rstrip("/"): member for member in source}
    kept = {name: member for name, member in members.items() if name not in (".", "") and _is_kept(name)}
    made = {text.path: text for text in (*_MADE, *_statuses(packages), _certificates(source, members))}
    folders = {str(parent) for name in made for parent in Path(name).parents} - {".", *kept}
    for name in sorted({*kept, *made, *folders}, key=lambda name: name.split("/")):
        member = kept.get(name)
        if name in made:
            writer.add(made[name])
        elif member is None or member.isdir():
            writer.add_folder(name)
        elif member.issym():
            writer.add_link(name, member.linkname)
        elif member.isfile() or member.islnk():
            _copy(source, member, name, writer)
    if "usr/bin/gcc" in kept and "usr/bin/cc" not in kept:
        writer.add_link("usr/bin/cc", "gcc")


def _copy(source: tarfile.TarFile, member: tarfile.TarInfo, name: str, writer: TarWriter) -> None:
    target = source.getmember(member.linkname) if member.islnk() else member
    data = source.extractfile(target)
    assert data is not None
    with data:
        writer.add_stream(name, data, target.size, executable=bool(target.mode & 0o100))


def _glibc(source: tarfile.TarFile) -> str:
    """The version of glibc in an archive, as the library itself says it; empty without one."""
    for member in source:
        if fnmatchcase(member.name, "*/libc.so.6") and member.isfile():
            data = source.extractfile(member)
            found = re.search(rb"GNU C Library .* version (\d+\.\d+)", data.read() if data else b"")
            return found[1].decode() if found else ""
    return ""


def _is_kept(name: str) -> bool:
    if fnmatchcase(name, _COPYRIGHT):
        return True
    return not any(fnmatchcase(name, pattern) for pattern in (*_LEFT_OUT, _DOCS))


def _control_data(source: tarfile.TarFile) -> list[str]:
    """What each package of an archive says of itself, as the hook of `_fetch` wrote it."""
    data = source.extractfile(f"./{_LISTING}")
    text = data.read().decode("utf-8", "replace") if data else ""
    return sorted(part + "\n" for part in text.split("\n\n") if part.strip())


def _parts(source: tarfile.TarFile, packages: list[str]) -> Iterator[Other]:
    """The packages as parts of the image; their licences are those that copyright files for machines name."""
    for fields in packages:
        name, version, architecture = (_field(fields, key) for key in ("Package", "Version", "Architecture"))
        text = _copyright(source, name)
        where = f"of the base, licence in /usr/share/doc/{name}/copyright" if text else "of the base"
        licences = tuple(debian_copyright.licences(text))
        yield Other(
            name, version, debian_copyright.purl("debian", name, version, architecture), licences, where
        )


def _field(fields: str, key: str) -> str:
    match = re.search(rf"^{key}: (\S+)$", fields, re.MULTILINE)
    return match[1] if match else ""


def _copyright(source: tarfile.TarFile, package: str) -> str:
    """The copyright file of a package; empty without one (its folder may be a link to another's)."""
    try:
        data = source.extractfile(f"./usr/share/doc/{package}/copyright")
    except KeyError:
        return ""
    return data.read().decode("utf-8", "replace") if data else ""


def _statuses(packages: list[str]) -> Iterator[Text]:
    """What is installed, as scanners of images without dpkg read it: a file for each package."""
    for fields in packages:
        if name := _field(fields, "Package"):
            yield Text(f"var/lib/dpkg/status.d/{name}", fields.encode())


def _certificates(source: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> Text:
    """All certificates in one file, as `update-ca-certificates` makes it."""
    names = sorted(n for n in members if n.startswith("usr/share/ca-certificates/") and n.endswith(".crt"))
    texts = []
    for name in names:
        data = source.extractfile(members[name])
        assert data is not None
        texts.append(data.read().rstrip(b"\n") + b"\n")
    return Text("etc/ssl/certs/ca-certificates.crt", b"".join(texts))
