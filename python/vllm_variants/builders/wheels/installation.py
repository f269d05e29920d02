"""Install a lock with uv into a fresh, relocatable environment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vllm_variants.builders.wheels import locks
from vllm_variants.builders.wheels.locks import Lock
from vllm_variants.errors import Error, InputError, ResourceError, UnsupportedError
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model.platforms import host_system
from vllm_variants.system import http, uv
from vllm_variants.system.process import CompletedCommand

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
        ("Bad uncompressed size", "Bad compressed size", "Bad CRC"),
        Error,
        "a wheel that was downloaded is damaged: nothing was installed",
        "build again; if it stays, the index serves a broken file",
    ),
    (
        ("network was disabled", "network connectivity is disabled"),
        ResourceError,
        "uv may not use the network, and its cache does not have every wheel of the lock",
        "let it: unset UV_OFFLINE (or `offline` in uv.toml) and build again",
    ),
    (
        ("not found in the provided package locations", "the index was disabled"),
        ResourceError,
        "uv may not use a package index, and the folders that it was given lack a wheel of the lock",
        "let it: unset UV_NO_INDEX (or `no-index` in uv.toml), or add the wheels to UV_FIND_LINKS",
    ),
    (
        (
            "dns error",
            "error sending request",
            "Connection",
            "timed out",
            "Failed to fetch",
            "Failed to download",
            "network was disabled",
        ),
        ResourceError,
        "the package index could not be reached",
        "check the network (`vllm-variants doctor`) and build again: what was downloaded is kept",
    ),
    (
        ("Couldn't parse requirement", "expected '-c', '-e', '-r'", "Invalid hash", "Unsupported hash"),
        InputError,
        "the lock is broken: {error}",
        "take it from the release again, or make it in a checkout: ./vllm-variants lock",
    ),
    (
        (
            "not found in the package registry",
            "no version of",
            "has no usable wheels",
            "has no wheels with",
            "only has wheels for",
        ),
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
    # Hard links share the disk with uv's cache and outlive it; uv copies where there can be none.
    command += ["--link-mode", "hardlink"]
    if lock.system != host_system():
        command += ["--python-platform", locks.wheel_platform(lock.release, lock.system)]
    if index:
        command += ["--index", index]
    uv_run(command, folder / "bin" / "python", files)


def lock_from_index(lock: Lock, index: str, into: Path) -> Path:
    """Lock the packages that only `index` has, with the hashes it gives; return the lock's path."""
    assert lock.index_only is not None
    made = into / "from-index.txt"
    command = locks.compile_command(lock.release, lock.system)
    command += ["--no-deps", "--index", index, "--output-file", str(made), str(lock.index_only)]
    _check(uv.run(command), "the packages of --index could not be resolved")
    if "--hash=" not in made.read_text(encoding="utf-8"):
        raise UnsupportedError(
            f"the index {http.without_credentials(index)} gives no hashes, so its wheels cannot be checked",
            hint="name an index that does: its links end in #sha256=…",
        )
    return made


def uv_run(command: Sequence[str | Path], python: Interpreter | Path, rest: Sequence[Path]) -> None:
    """Run uv for one interpreter; raises the `Error` that its last words mean."""
    path = python.path if isinstance(python, Interpreter) else python
    _check(uv.run([*command, "--python", path, *rest], hide=_EVERY_PACKAGE), "uv failed")


def _check(completed: CompletedCommand, what: str) -> None:
    if not completed.status:
        return
    error = _first_error(completed.stdout)
    for words, kind, meaning, hint in _REASONS:
        if any(word in completed.stdout for word in words):
            raise kind(meaning.format(error=error), hint=hint)
    raise Error(f"{what} (exit status {completed.status}): {error}")


def _first_error(text: str) -> str:
    """uv's own sentence, which is the first; what follows are causes, hints and a drawing of the place."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    if not errors:
        return lines[-1] if lines else "it said nothing"
    return re.sub(r"^error:\s*", "", errors[0])
