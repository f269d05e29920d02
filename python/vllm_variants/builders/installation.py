"""Install a lock with uv into a fresh, relocatable environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vllm_variants import locks, process
from vllm_variants.errors import Error, ResourceError, UnsupportedError
from vllm_variants.interpreters import Interpreter
from vllm_variants.locks import Lock
from vllm_variants.matrix import host_system

# What uv says → what it means. The first that is found in its last words decides.
_REASONS: tuple[tuple[tuple[str, ...], type[Error], str, str], ...] = (
    (
        ("No space left on device", "os error 28"),
        ResourceError,
        "the disk is full",
        "free some (`vllm-variants gc`, `uv cache prune`); downloads are kept",
    ),
    (
        ("Hash mismatch",),
        Error,
        "a downloaded wheel is not the one in the lock (wrong hash): nothing was installed",
        "clear it with `uv cache clean PACKAGE` and build again; if it stays, the index serves another file",
    ),
    (
        (
            "dns error",
            "error sending request",
            "Connection",
            "timed out",
            "Failed to fetch",
            "Failed to download",
        ),
        ResourceError,
        "the package index could not be reached",
        "check the network (`vllm-variants doctor`) and build again: what was downloaded is kept",
    ),
    (
        ("not found in the package registry", "no version of", "has no usable wheels", "only has wheels for"),
        UnsupportedError,
        "the index has no wheel of some package for this platform",
        "see uv's words above; another index can be named with --index",
    ),
)


# uv's list of what it installed: 177 lines that the lock and the manifest hold already.
_EVERY_PACKAGE = r" [+~-] \S+==\S+"


def environment(folder: Path, interpreter: Interpreter) -> None:
    """Make `folder` a fresh relocatable environment of `interpreter`."""
    uv_run(["venv", "--quiet", "--relocatable", "--no-project", "--allow-existing"], interpreter, [folder])


def sync(folder: Path, lock: Lock, files: Sequence[Path], index: str | None) -> None:
    """Install exactly the wheels of these requirement files, each checked against its hash."""
    command: list[str | Path] = ["pip", "sync", "--require-hashes", "--only-binary", ":all:"]
    if lock.system != host_system():
        command += ["--python-platform", locks.wheel_platform(lock.system)]
    if index:
        command += ["--index", index]
    uv_run(command, folder / "bin" / "python", files)


def lock_from_index(lock: Lock, index: str, into: Path) -> Path:
    """Lock the packages that only `index` has, with the hashes it gives; return the lock's path."""
    assert lock.index_only is not None
    made = into / "from-index.txt"
    command = locks.compile_command(lock.release, lock.system)
    command += ["--no-deps", "--index", index, "--output-file", str(made), str(lock.index_only)]
    _check(process.run(command, env=_environment()), "the packages of --index could not be resolved")
    if "--hash=" not in made.read_text(encoding="utf-8"):
        raise UnsupportedError(
            f"the index {index} gives no hashes, so its wheels could not be checked",
            mend="name an index that does: its links end in #sha256=…",
        )
    return made


def uv_run(command: Sequence[str | Path], python: Interpreter | Path, rest: Sequence[Path]) -> None:
    """Run uv for one interpreter; raises the `Error` that its last words mean."""
    path = python.path if isinstance(python, Interpreter) else python
    whole = [process.uv(), *command, "--python", path, *rest]
    _check(process.run(whole, env=_environment(), hide=_EVERY_PACKAGE), "uv failed")


def _environment() -> dict[str, str]:
    # An environment that is active around us is not the one to install into.
    return {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH"}}


def _check(talk: process.Talk, what: str) -> None:
    if not talk.status:
        return
    for words, kind, meaning, mend in _REASONS:
        if any(word in talk.text for word in words):
            raise kind(meaning, mend=mend)
    last = [line.strip() for line in talk.text.splitlines() if line.strip()][-1:]
    raise Error(f"{what} (exit status {talk.status}): {last[0] if last else 'it said nothing'}")
