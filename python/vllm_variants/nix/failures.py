"""What a failed build died of, as a sentence and a hint, from its last lines and Nix's error."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm_variants.errors import Error, ResourceError, UnsupportedError
from vllm_variants.nix.progress import Build

# What stands in the last lines → what it means. The first that is found decides.
_REASONS: tuple[tuple[re.Pattern[str], type[Error], str, str], ...] = (
    (
        re.compile(r"No space left on device|[Dd]isk quota exceeded|database or disk is full"),
        ResourceError,
        "the disk is full",
        "free some (nix-collect-garbage -d) and build again: what was finished is kept",
    ),
    (
        re.compile(
            r"Killed signal terminated program|died due to signal 9|failed due to signal 9"
            r"|out of memory|Cannot allocate memory|virtual memory exhausted|std::bad_alloc|exit code 137"
        ),
        ResourceError,
        "memory ran out: too many compile jobs at once",
        "build again with fewer: --cores {fewer}",
    ),
    (
        # Nix's own sentences, older and newer (local and remote), and no compiler's or CMake's.
        re.compile(
            r"a '[^']*' with features \{[^}]*\} is required to build '"
            r"|Required system: '[^']*' with features \{"
            r"|required \(system, features\): \(|required system or feature not available"
        ),
        UnsupportedError,
        "no machine here offers what it requires",
        "add `system-features = big-parallel` to nix.conf, or name a builder that has it: --builders",
    ),
    (
        re.compile(r"[Uu]nable to start any build"),
        UnsupportedError,
        "nothing is built on this machine (--max-jobs 0), and no remote machine takes it",
        "name one that does: --builders, or build here: --max-jobs 1",
    ),
    (
        re.compile(r"lacks a signature by a trusted key|no signature (?:of it )?is trusted"),
        Error,
        "the other store wants a signature that it trusts",
        "sign it (--signing-key) with a key in trusted-public-keys there, or be in trusted-users there",
    ),
    (
        re.compile(r"hash mismatch in fixed-output derivation"),
        Error,
        "a download is not the file that nixpkgs expects (wrong hash)",
        "try again later or from another network; if it stays, upstream changed the file",
    ),
    (
        re.compile(
            r"unable to download|Could(?:n't| not) resolve host|Connection (?:refused|timed out|reset)|"
            r"cannot open connection to remote store|failed to start SSH connection"
        ),
        ResourceError,
        "a download or a remote machine could not be reached",
        "check the network and build again: what was finished is kept",
    ),
)
_TELLING = re.compile(r"\berror\b|\bFAILED\b|\bfatal\b", re.IGNORECASE)
_EMPTY_WORDS = re.compile(r"ninja: build stopped|^FAILED: ")


def failure(short: str, build: Build | None, errors: Sequence[str], own: bool, cores: int) -> Error:
    """Why variant `short` was not built: `build` is the derivation that failed, its own or not."""
    tail = list(build.tail) if build else []
    about = [error for error in errors if not build or build.drv in error] or list(errors)
    where = _where(short, build, own)
    for pattern, kind, meaning, hint in _REASONS:
        if any(pattern.search(line) for line in (*tail, *about)):
            telling = next((line.strip() for line in (*tail, *about) if pattern.search(line)), "")
            text = f"{where}: {meaning}" + (f" ({_short(telling)})" if tail else "")
            return kind(text, hint=hint.format(fewer=max(1, cores // 2)))
    said = _telling(tail) or _clean(about)
    return Error(f"{where}: {said}" if said else f"{where}, and said nothing")


def transfer_failure(text: str, error: str) -> Error:
    """Why paths did not get from one store to another: `text` says which, `error` is Nix's."""
    for pattern, kind, meaning, hint in _REASONS:
        if pattern.search(error):
            return kind(f"{text}: {meaning} ({_short(error)})", hint=hint)
    return Error(f"{text}: {_short(error)}")


def out_of_memory(error: Error) -> bool:
    """Whether fewer compile jobs may help."""
    return isinstance(error, ResourceError) and "memory ran out" in error.message


def _where(short: str, build: Build | None, own: bool) -> str:
    if build is None:
        return f"{short} was not built"
    phase = f" in {build.phase}" if build.phase else ""
    objects = f" at object {build.objects[0]} of {build.objects[1]}" if build.objects else ""
    machine = f" on {build.machine}" if build.machine else ""
    subject = short if own else f"{build.name}, which {short} needs,"
    return f"{subject} failed{phase}{objects}{machine}"


def _telling(tail: Sequence[str]) -> str:
    """The line that tells most: the first of the last ones with an error in it, else the last."""
    telling = [line for line in tail if _TELLING.search(line)]
    spoken = [line for line in telling if not _EMPTY_WORDS.search(line)] or telling or list(tail[-1:])
    return _short(spoken[0].strip()) if spoken else ""


def _clean(errors: Sequence[str]) -> str:
    first = errors[0].splitlines() if errors else []
    words = [re.sub(r"^\s*error:\s*", "", line).strip() for line in first]
    return _short(" ".join(word for word in words if word))


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}…"
