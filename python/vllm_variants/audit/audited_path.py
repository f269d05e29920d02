"""A path to audit: the device it is judged for and the release it is held to, if it names them itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.audit import contents
from vllm_variants.audit.contents import Expectations
from vllm_variants.audit.library import LibraryAudit
from vllm_variants.audit.targets.found import Kind
from vllm_variants.audit.targets.identify import kind_of
from vllm_variants.errors import Error
from vllm_variants.model import results
from vllm_variants.model.capability import Capability
from vllm_variants.model.results import Manifest

_VLLM = re.compile(r"vllm-([^-+]+)(?:\+[^-]*)?(?:-.*\.whl|\.dist-info)")
_MACHINE = re.compile(r"(x86_64|aarch64)(?:\.whl)?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class AuditedPath:
    """One path to audit, and what it is.

    `capability` is the device to judge it for (None: only count its images), `release` the vLLM that it is
    held to (None where nobody knows), `manifest` that of a result (None for anything else).
    """

    path: Path
    kind: Kind
    capability: Capability | None
    release: str | None
    manifest: Manifest | None

    @property
    def whole(self) -> bool:
        """Whether all of a release can be in it. A single library is held to none."""
        return self.kind is not Kind.LIBRARY


def audited_paths(
    paths: Sequence[Path],
    capability: Capability | None,
    release: str | None,
    here: Sequence[Capability] = (),
) -> tuple[AuditedPath, ...]:
    """Each path with its device and release; where no device is named, those `here`, once each.

    A result's manifest names both, and so does that of an export of one result where it lies open;
    `capability` and `release` are for paths that have none. Where all
    paths are results, `capability` and `release` replace what their manifests say. Raises `InputError` for a
    manifest that is broken.
    """
    manifests = [manifest(path) for path in paths]
    only_results = all(manifests)
    audited = []
    for path, own in zip(paths, manifests, strict=True):
        device, version = capability, release
        if own and not (only_results and capability):
            device = own.capability
        if own and not (only_results and release):
            version = own.release
        kind = kind_of(path)
        if not own and (exported := _exported(path)):
            device, version = device or exported[0], version or exported[1]
        version = version or next(_releases(path), None)
        devices: Sequence[Capability | None] = [device] if device else here or [None]
        audited += [AuditedPath(path, kind, each, version, own) for each in devices]
    return tuple(audited)


def manifest(path: Path) -> Manifest | None:
    """The manifest of a result; None when `path` is none."""
    file = path / results.MANIFEST
    return Manifest.read(file) if path.is_dir() and file.is_file() else None


def _exported(path: Path) -> tuple[Capability, str] | None:
    """The device and the release of the one result that a wheelhouse or an image layout was made of."""
    try:
        (result,) = json.loads((path / "export.json").read_text(encoding="utf-8"))["results"]
        return Capability.parse(str(result["capability"])), str(result["release"])
    except (OSError, ValueError, KeyError, TypeError, Error):
        return None


def expectations_for(
    audited: AuditedPath, libraries: Sequence[LibraryAudit]
) -> tuple[Expectations | None, str]:
    """What the libraries found at a path should hold, and a sentence on why nothing is expected of them.

    The sentence is empty where none is needed: for a single file, or where device or release are not known.
    """
    if not (audited.whole and audited.release and audited.capability):
        return None, ""
    about = f"{audited.path} is held to no release"
    system = audited.manifest.system if audited.manifest else _system(audited.path, libraries)
    if not system:
        return None, f"{about}: nothing in it says for which system its vLLM {audited.release} is"
    expectations = contents.load(audited.release, system)
    if expectations is None:
        return None, f"{about}: there are no expectations for vLLM {audited.release} on {system}"
    if not any(audited.capability.sm in library.by_sm for library in expectations.libraries.values()):
        return None, f"{about}: the expectations for vLLM {audited.release} have no {audited.capability.sm}"
    return expectations, ""


def _system(path: Path, libraries: Sequence[LibraryAudit]) -> str:
    """`x86_64-linux`, of vLLM's libraries, of any other, or of the wheel's tag; empty when unknown."""
    machines = [library.machine for library in libraries if library.machine and "vllm/" in library.path]
    machines += [library.machine for library in libraries if library.machine]
    texts = [path.name] if path.suffix == ".whl" else [_text(info / "WHEEL") for info in _dist_infos(path)]
    machines += [match[1] for text in texts if (match := _MACHINE.search(text))]
    return f"{machines[0]}-linux" if machines else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _releases(path: Path) -> Iterator[str]:
    names = [path.name] if path.suffix == ".whl" else [info.name for info in _dist_infos(path)]
    for name in names:
        if match := _VLLM.fullmatch(name):
            yield match[1]


def _dist_infos(path: Path) -> Iterator[Path]:
    for pattern in ("vllm-*.dist-info", "lib/python3*/site-packages/vllm-*.dist-info"):
        yield from sorted(path.glob(pattern))
