"""What is being audited: which release and device a path speaks of, if it says so itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_variants.audit import contents as expectations
from vllm_variants.audit.contents import Expectations
from vllm_variants.audit.library import LibraryAudit
from vllm_variants.model import results
from vllm_variants.model.capability import Capability
from vllm_variants.model.results import Manifest

_VLLM = re.compile(r"vllm-([^-+]+)(?:\+[^-]*)?(?:-.*\.whl|\.dist-info)")
_MACHINE = re.compile(r"(x86_64|aarch64)(?:\.whl)?\s*$", re.MULTILINE)


@dataclass(frozen=True)
class AuditedPath:
    """One path to audit: the device to judge it for (None: only count), and what it says of itself.

    `release` is the vLLM that it is held to, None where nobody knows.
    """

    path: Path
    capability: Capability | None
    release: str | None
    manifest: Manifest | None

    @property
    def whole(self) -> bool:
        """Whether all of a release can be in it. A single library is held to none."""
        return self.path.is_dir() or self.path.suffix == ".whl"


def audited_paths(
    paths: Sequence[Path], capability: Capability | None, release: str | None
) -> tuple[AuditedPath, ...]:
    """Each path with its device and release.

    A result speaks for itself, and `capability` and `release` are for what does not; where there are
    results only, they are asked about that device and release instead. Raises `InputError` for a
    manifest that is broken.
    """
    manifests = [manifest(path) for path in paths]
    override = all(manifests)
    found = []
    for path, known in zip(paths, manifests, strict=True):
        device, version = capability, release
        if known and not (override and capability):
            device = known.capability
        if known and not (override and release):
            version = known.release
        found.append(AuditedPath(path, device, version or next(_releases(path), None), known))
    return tuple(found)


def manifest(path: Path) -> Manifest | None:
    """The manifest of a result; None when `path` is none."""
    file = path / results.MANIFEST
    return Manifest.read(file) if path.is_dir() and file.is_file() else None


def expectations_for(
    subject: AuditedPath, libraries: Sequence[LibraryAudit]
) -> tuple[Expectations | None, str]:
    """What the libraries of a subject are held to, and why to nothing where one might think otherwise."""
    if not (subject.whole and subject.release and subject.capability):
        return None, ""
    about = f"{subject.path} is held to no release"
    system = subject.manifest.system if subject.manifest else _system(subject.path, libraries)
    if not system:
        return None, f"{about}: nothing in it says for which system its vLLM {subject.release} is"
    known = expectations.load(subject.release, system)
    if known is None:
        return None, f"{about}: there are no expectations for vLLM {subject.release} on {system}"
    if not any(subject.capability.sm in library.by_sm for library in known.libraries.values()):
        return None, f"{about}: the expectations for vLLM {subject.release} have no {subject.capability.sm}"
    return known, ""


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
