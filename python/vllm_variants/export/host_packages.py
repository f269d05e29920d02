"""Whose the libraries of this host are that came along: its distribution's packages, as dpkg knows them.

On a host without dpkg, or for a library that no package has, a library is known by its own name alone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from vllm_variants.export import debian_copyright
from vllm_variants.export.others import Other
from vllm_variants.system import process

_DOCS = Path("/usr/share/doc")
_FIELDS = "${binary:Package}\\t${Package}\\t${Version}\\t${Architecture}\\n"


def of(files: Sequence[Path]) -> list[Other]:
    """The packages that some files of this host belong to, by name, and the files that no package has."""
    owners = _owners(files)
    unowned = sorted({path.name for path in files if path not in owners})
    packages = [*_packages(owners), *(Other(name, "", f"pkg:generic/{quote(name)}") for name in unowned)]
    return sorted(packages, key=lambda package: package.name)


def _owners(files: Sequence[Path]) -> dict[Path, str]:
    """Which package has each file, `libssl3:amd64`; only those that some package has."""
    if not files or not shutil.which("dpkg-query"):
        return {}
    spellings = {str(name): path for path in files for name in _spellings(path)}
    completed = process.capture(["dpkg-query", "--search", *spellings])
    found: dict[Path, str] = {}
    for line in completed.stdout.splitlines():
        names, _, path = line.rpartition(": ")
        if path in spellings and names and not names.startswith("diversion "):
            found[spellings[path]] = names.split(", ")[0]
    return found


def _spellings(path: Path) -> Iterator[Path]:
    """The names under which dpkg may know a file: as it was found, resolved, with /usr and without."""
    for name in (path, path.resolve()):
        yield name
        text = str(name)
        yield Path(text.removeprefix("/usr")) if text.startswith("/usr/lib") else Path(f"/usr{text}")


def _packages(owners: Mapping[Path, str]) -> Iterator[Other]:
    if not owners:
        return
    completed = process.capture(["dpkg-query", "--show", f"--showformat={_FIELDS}", *set(owners.values())])
    system = _system()
    for line in completed.stdout.splitlines():
        qualified, name, version, architecture = line.split("\t")
        files = sorted({path.name for path, owner in owners.items() if owner in (qualified, name)})
        purl = debian_copyright.purl(system, name, version, architecture)
        text = _DOCS / name / "copyright"
        licences = debian_copyright.licences(_read(text))
        texts = (text,) if text.is_file() else ()
        yield Other(name, version, purl, tuple(licences), f"of this package: {', '.join(files)}", texts)


def _system() -> str:
    """The distribution, as os-release(5) names it: `debian`, `ubuntu`."""
    match = re.search(r'^ID="?([a-z0-9._-]+)', _read(Path("/etc/os-release")), re.MULTILINE)
    return match[1] if match else "debian"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
