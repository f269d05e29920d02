"""Why a build failed, as a sentence and a hint: from its last lines and Nix's errors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllm_variants.errors import Error, ResourceError, UnsupportedError
from vllm_variants.nix.progress import Build

# A pattern in the last lines, and what it means. The first that matches decides.
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
        # Nix's own sentences, older and newer (local and remote), but not a compiler's or CMake's.
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
_ERROR = re.compile(r"\berror\b|\bFAILED\b|\bfatal\b", re.IGNORECASE)
_WITHOUT_REASON = re.compile(r"ninja: build stopped|^FAILED: ")


def failure(short: str, build: Build | None, errors: Sequence[str], own: bool, cores: int) -> Error:
    """Why variant `short` was not built.

    `build` is the build that failed, if it is known: `own` says whether it is the variant's own or one
    that it needs. `errors` are Nix's; `cores` the compile jobs that the build had.
    """
    tail = list(build.tail) if build else []
    related = [error for error in errors if not build or build.drv in error] or list(errors)
    place = _place(short, build, own)
    for pattern, kind, meaning, hint in _REASONS:
        line = next((line for line in (*tail, *related) if pattern.search(line)), None)
        if line is not None:
            text = f"{place}: {meaning}" + (f" ({_short(line.strip())})" if tail else "")
            return kind(text, hint=hint.format(fewer=max(1, cores // 2)))
    reason = _informative_line(tail) or _first_error(related)
    return Error(f"{place}: {reason}" if reason else f"{place}, and printed nothing")


def transfer_failure(text: str, error: str) -> Error:
    """Why paths were not copied or signed: `text` starts the sentence, `error` is Nix's."""
    for pattern, kind, meaning, hint in _REASONS:
        if pattern.search(error):
            return kind(f"{text}: {meaning} ({_short(error)})", hint=hint)
    return Error(f"{text}: {_short(error)}")


def unbuildable(short: str, system: str, features: Sequence[str]) -> Error:
    """That variant `short` needs a machine of `system` with `features`, and none is configured."""
    need = f"{system} with {', '.join(features)}" if features else system
    return UnsupportedError(
        f"{short} needs a machine of {need}, and none is configured here",
        hint=f"name a builder: --builders 'ssh-ng://host {system} - 4 1 big-parallel', or change nix.conf "
        "(system-features, extra-platforms): vllm-variants doctor",
    )


def out_of_memory(error: Error) -> bool:
    """Whether fewer compile jobs may help."""
    return isinstance(error, ResourceError) and "memory ran out" in error.message


def _place(short: str, build: Build | None, own: bool) -> str:
    if build is None:
        return f"{short} was not built"
    phase = f" in {build.phase}" if build.phase else ""
    objects = f" at object {build.objects[0]} of {build.objects[1]}" if build.objects else ""
    machine = f" on {build.machine}" if build.machine else ""
    subject = short if own else f"{build.name}, which {short} needs,"
    return f"{subject} failed{phase}{objects}{machine}"


def _informative_line(tail: Sequence[str]) -> str:
    """The first of the last lines with an error in it, and the reason if possible; else the last."""
    errors = [line for line in tail if _ERROR.search(line)]
    candidates = [line for line in errors if not _WITHOUT_REASON.search(line)] or errors or list(tail[-1:])
    return _short(candidates[0].strip()) if candidates else ""


def _first_error(errors: Sequence[str]) -> str:
    """The first of Nix's errors, as one line without the word `error:`."""
    lines = errors[0].splitlines() if errors else []
    return _short(" ".join(filter(None, (re.sub(r"^\s*error:\s*", "", line).strip() for line in lines))))


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}…"
