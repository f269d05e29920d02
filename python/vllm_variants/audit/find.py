"""Libraries to audit: in a file, a wheel, a directory, a result, or a store path with its closure."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path

from vllm_variants.errors import Error, InputError, MissingError
from vllm_variants.fatbin.source import Malformed, Source, WheelMember, opened
from vllm_variants.system import atomic, process

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it; zipfile then refuses such members itself

    class LZMAError(Exception):  # type: ignore[no-redef]
        """Never raised here."""


TEXT = (".py", ".pyc", ".pyi", ".h", ".hpp", ".cuh", ".json", ".txt")
_ELF, _ZIP = b"\x7fELF", (b"PK\x03\x04", b"PK\x05\x06")
_DAMAGED = (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, zlib.error, LZMAError, Malformed, OSError)
"""What reading a damaged, encrypted or odd wheel raises; `NotImplementedError` is a `RuntimeError`."""

Unreadable = Callable[[str, str], None]
"""Called with the name of a file or folder inside a tree or wheel that cannot be read, and why."""


def _refuse(name: str, reason: str) -> None:
    raise InputError(f"{name} cannot be read: {reason}")


def examined(path: Path) -> os.stat_result:
    """The status of a path that a person named.

    `MissingError` when it is not there, `InputError` when it may not be looked at or is neither a
    file nor a directory: a device or a FIFO has no end to read to.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise absent(path) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint="see who may: ls -ld") from error
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise InputError(
            f"{path} is {_kind(status.st_mode)}", hint="name a library, a wheel or a directory with libraries"
        )
    return status


def absent(path: Path) -> Error:
    """The error for a path that is not there, or is a link to nothing."""
    if path.is_symlink():
        return MissingError(f"{path} does not exist: it is a link to nothing", hint=f"ls -l {path}")
    return MissingError(
        f"{path} does not exist", hint="check the path; `vllm-variants list --results` shows what was built"
    )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a block device"}
    return kinds.get(stat.S_IFMT(mode), "a character device")


def sources(
    path: Path, unreadable: Unreadable = _refuse, *, named: bool = True
) -> Iterator[tuple[str, Source]]:
    """Every file under `path` that may hold device code, open, with its path in `path`.

    A symbolic link is followed only when it is `path` itself: what lies in a tree is counted where
    it lies, once for all names of an inode. Whether a file is a library, its first four bytes say.
    What cannot be read inside a tree or a wheel is passed to `unreadable`, and the rest is read.
    Raises `MissingError` or `InputError` where `path` itself cannot be read. Where it is not `named` by a
    person but was found, it is passed to `unreadable` instead, and a file that is neither a library nor
    called a wheel is passed over.
    """
    if not named:
        yield from _found(path, unreadable)
        return
    if stat.S_ISDIR(examined(path).st_mode):
        yield from _in_directory(path.resolve(), unreadable)
        return
    try:
        head = _head(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", hint="see who may: ls -l") from error
    if head != _ELF and (head in _ZIP or path.suffix == ".whl" or zipfile.is_zipfile(path)):
        yield from _in_wheel(path, "", lambda member, why: unreadable(member or path.name, why))
        return
    with opened(path) as source:
        yield path.name, source


def _head(path: str | Path) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - thousands of them
        return file.read(4)


def is_library(path: str) -> bool:
    """Whether a file begins as an ELF file; False also for one that cannot be read."""
    try:
        return begins_as_elf(_head(path))
    except OSError:
        return False


def begins_as_elf(head: bytes) -> bool:
    """Whether a file whose first bytes (four, or all it has) are `head` is an ELF file, or was one."""
    return bool(head) and _ELF.startswith(head)


def _in_directory(folder: Path, unreadable: Unreadable) -> Iterator[tuple[str, Source]]:
    for path, _ in regular_files(str(folder), unreadable):
        name = os.path.relpath(path, folder)

        def refused(member: str, why: str, name: str = name) -> None:
            unreadable(f"{name}/{member}".rstrip("/"), why)

        for member, source in _found(Path(path), refused):
            yield f"{name}/{member}".rstrip("/"), source


def _found(path: Path, unreadable: Unreadable) -> Iterator[tuple[str, Source]]:
    """The library that a file is (its name in it: empty), or those in the wheel that it is."""
    try:
        is_elf = begins_as_elf(_head(path))
        if not is_elf and path.suffix == ".whl":
            yield from _in_wheel(path, "", unreadable)
        elif is_elf:
            with opened(path) as source:
                yield "", source
    except (OSError, Malformed) as error:
        unreadable("", _reason(error))


def regular_files(
    folder: str, unreadable: Unreadable, skipped: Collection[str] = ()
) -> list[tuple[str, os.stat_result]]:
    """The first name of every inode below `folder` that may hold device code, sorted, and its status.

    `skipped` are names of folders directly in it. What a slimming is writing, or left when it was killed, is
    passed over.
    """

    def refused(error: OSError) -> None:
        unreadable(os.path.relpath(error.filename, folder), _reason(error))

    inodes: dict[tuple[int, int], tuple[str, os.stat_result]] = {}
    for parent, below, names in os.walk(folder, onerror=refused):
        if parent == folder:
            below[:] = [name for name in below if name not in skipped]
        for name in names:
            if name.endswith(TEXT) or atomic.is_leftover_name(name):
                continue
            path = os.path.join(parent, name)  # noqa: PTH118 - 100,000 of them
            try:
                status = os.lstat(path)
            except OSError as error:
                refused(error)
                continue
            if stat.S_ISREG(status.st_mode):
                inode = status.st_dev, status.st_ino
                if inode not in inodes or path < inodes[inode][0]:
                    inodes[inode] = path, status
    return sorted(inodes.values())


def _in_wheel(path: Path, above: str, unreadable: Unreadable) -> Iterator[tuple[str, Source]]:
    try:
        wheel = zipfile.ZipFile(path)
    except _DAMAGED as error:
        unreadable(above.rstrip("/"), f"no readable wheel ({_reason(error)})")
        return
    with wheel:
        for member in sorted(wheel.infolist(), key=lambda member: member.filename):
            if not member.file_size or member.filename.endswith(TEXT):
                continue
            try:
                with closing(WheelMember(wheel, member)) as source:
                    if begins_as_elf(source.at(0, min(4, source.size))):
                        yield above + member.filename, source
            except _DAMAGED as error:
                unreadable(above + member.filename, _reason(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return error.message if isinstance(error, Malformed) else str(error) or type(error).__name__


def closure(path: Path) -> list[Path]:
    """A store path and all that it needs at run time, as Nix knows it.

    Raises `MissingError` without Nix, `InputError` for a path that is not in its store.
    """
    try:
        completed = process.capture(["nix-store", "--query", "--requisites", path.resolve()])
    except FileNotFoundError as error:
        raise MissingError("--closure asks nix-store, which is not installed") from error
    if completed.status:
        raise InputError(f"{path} has no closure: {completed.stderr.strip()}")
    return [Path(line) for line in completed.stdout.splitlines()]
