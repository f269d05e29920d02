"""What a path is, from what it holds: an environment, a result, an image, a lock, a wheel, …"""

from __future__ import annotations

from pathlib import Path

from vllm_variants.audit.cache import Cache
from vllm_variants.audit.find import examined
from vllm_variants.audit.targets import environments, images, locks
from vllm_variants.audit.targets.found import Found, Kind, Progress, release_in
from vllm_variants.audit.targets.layers import compression
from vllm_variants.audit.targets.trees import inside, read_tree
from vllm_variants.errors import InputError, UsageError
from vllm_variants.model import results

_STORES = ("/nix/store",)
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257


def kind_of(path: Path) -> Kind:
    """What a path is. Raises `MissingError` or `InputError` where it cannot be looked at."""
    examined(path)
    if path.is_dir():
        return _kind_of_folder(path)
    head = _head(path)
    if head[:4] == b"\x7fELF" or (path.suffix == ".so"):
        return Kind.LIBRARY
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06") or path.suffix == ".whl":
        return Kind.WHEEL
    if head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC) or (
        compression(head) == "zstd"
        or (compression(head) and ".tar" in path.name)
        or path.suffix in (".tar", ".tgz")
    ):
        return Kind.IMAGE_ARCHIVE
    if locks.is_lock(path, head):
        return Kind.LOCK
    return Kind.LIBRARY


def _kind_of_folder(path: Path) -> Kind:
    if (path / results.MANIFEST).is_file():
        return Kind.RESULT
    if (path / "oci-layout").is_file():
        return Kind.OCI_LAYOUT
    if str(path.resolve().parent) in _STORES:
        return Kind.STORE_PATH
    if environments.is_environment(path):
        return Kind.ENVIRONMENT
    files = inside(path)
    if files and any(file.suffix == ".whl" for file in files):
        return Kind.WHEELHOUSE
    return Kind.FOLDER


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 12)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint="see who may: ls -l") from error


def read(
    path: Path, progress: Progress = lambda name: None, *, fresh: bool = False, remember: bool = False
) -> Found:
    """The libraries of whatever a path is. Raises `MissingError` or `InputError` where it cannot be read.

    `fresh`: nothing that was read before is used again. `remember`: what is read is written into it, for an
    image of it; `UsageError` for anything but an environment.
    """
    kind = kind_of(path)
    if remember and kind is not Kind.ENVIRONMENT:
        raise UsageError(
            f"{path} is no environment that could remember what was read of it ({kind})",
            hint="--remember is for the environment of an image, while that is built",
        )
    match kind:
        case Kind.ENVIRONMENT:
            return environments.read_environment(path, progress, fresh, remember)
        case Kind.OCI_LAYOUT:
            return images.read_layout(path, progress)
        case Kind.IMAGE_ARCHIVE:
            return images.read_archive(path, progress)
        case Kind.LOCK:
            return locks.read_lock(path, progress)
        case _:
            cache = Cache(path, fresh) if path.is_dir() else None
            libraries = read_tree(path, progress, "", cache)
            names = [path.name] if path.suffix == ".whl" else [file.name for file in inside(path)]
            return Found(kind, tuple(libraries), release_in(names))
