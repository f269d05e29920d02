"""Examine this machine for builds from source: Nix, memory, disk, features, caches.

For `doctor`, and before a build. A build with wheels needs none of it, so no finding is worse than a note.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vllm_variants.errors import Error
from vllm_variants.machine import memory
from vllm_variants.model.findings import Finding, State
from vllm_variants.model.platforms import SYSTEMS, host_system
from vllm_variants.nix import command as nix_command
from vllm_variants.nix.command import Configuration, Nix
from vllm_variants.system.folders import free_bytes

PER_VARIANT = 20_000_000_000  # bytes in the store that one variant's build leaves and needs on the way
FEATURE = "big-parallel"
# Caches that are known to hold CUDA's unfree packages.
_WITH_CUDA = ("nixos-cuda", "cuda-maintainers", "nix-community", "cache.flox.dev")
_CUDA_CACHE = (
    "extra-substituters = https://cache.nixos-cuda.org, extra-trusted-public-keys = "
    "cache.nixos-cuda.org:74DUi4Ye579gUqzH4ziL9IyiJBlDpMRn9MBN8oNan9M= (nix.conf)"
)


def examine() -> Iterator[Finding]:
    """Every finding, for doctor; the first one says whether there is a Nix at all."""
    path = shutil.which("nix")
    if not path:
        yield Finding("Nix", State.NOTE, "absent (only the nix and flox builders need it)")
        return
    try:
        yield from _examine(Nix(path, ""))
    except (Error, OSError, ValueError) as failure:  # a Nix that prints nonsense ends no examination
        text = failure.message if isinstance(failure, Error) else f"{path} is broken: {failure}"
        yield Finding("Nix", State.NOTE, text, "install it again (only the nix and flox builders need it)")


def _examine(nix: Nix) -> Iterator[Finding]:
    version = nix.version()
    if not nix_command.new_enough(version):
        unknown = f"{nix.program} does not print its version: {version!r}"
        text = nix_command.too_old(version) if re.search(r"\d", version) else unknown
        yield Finding("Nix", State.NOTE, text, "nix upgrade-nix")
        return
    yield Finding("Nix", State.OK, f"{version} ({nix.program})")
    yield from before_build(nix, nix.configuration(), 1)
    yield _memory()


def before_build(nix: Nix, configured: Configuration, builds: int) -> Iterator[Finding]:
    """Findings that matter before `builds` variants are compiled, with the settings `configured`."""
    yield _disk(configured, builds)
    if configured.settings:
        yield _features(configured)
        yield _caches(configured)
        yield _unfree(configured)
    if untrusted := _trust(nix):
        yield untrusted


def _memory() -> Finding:
    plan = memory.limits_here(1)
    if plan.too_little:
        text = f"{plan.available / 1e9:.0f} GB available, and one CUDA compile job may take 8 GB"
        return Finding(
            "Nix memory", State.NOTE, text, "close something large, or build elsewhere: --builders"
        )
    return Finding("Nix memory", State.OK, plan.sentence())


def _disk(configured: Configuration, builds: int) -> Finding:
    needed = builds * PER_VARIANT
    places = {"the store": Path("/nix/store"), "builds": _build_folder(configured)}
    free = {what: free_bytes(path) for what, path in places.items()}
    text = ", ".join(f"{amount / 1e9:.0f} GB free for {what}" for what, amount in free.items())
    text += f"; {builds} variant{'s' if builds > 1 else ''} may take {needed / 1e9:.0f} GB in the store"
    if free["the store"] >= needed and free["builds"] >= PER_VARIANT:
        return Finding("Nix disk", State.OK, text)
    hint = "nix-collect-garbage -d" if free["the store"] < needed else "build-dir in nix.conf, or TMPDIR"
    return Finding("Nix disk", State.NOTE, text, hint)


def _build_folder(configured: Configuration) -> Path:
    return Path(configured.text("build-dir") or os.environ.get("TMPDIR") or tempfile.gettempdir())


def _features(configured: Configuration) -> Finding:
    system = host_system()
    if configured.builds(system, [FEATURE]):
        others = [other for other in SYSTEMS if other != system and configured.builds(other, [FEATURE])]
        remote = f"{len(configured.machines) or 'no'} remote builders"
        parts = (f"{FEATURE} for {system}", ", ".join(f"{other} too" for other in others), remote)
        return Finding("Nix features", State.OK, "; ".join(filter(None, parts)))
    return Finding(
        "Nix features",
        State.NOTE,
        f"no machine builds for {system} with {FEATURE}, which every variant requires",
        f"extra-system-features = {FEATURE} (nix.conf), or a builder that has it: --builders",
    )


def _caches(configured: Configuration) -> Finding:
    caches = configured.words("substituters")
    if any("cache.nixos.org" in cache for cache in caches):
        return Finding("Nix caches", State.OK, " ".join(caches))
    text = (
        f"{' '.join(caches) or 'none'}: without cache.nixos.org everything down to the C library is compiled"
    )
    return Finding("Nix caches", State.NOTE, text, "extra-substituters = https://cache.nixos.org (nix.conf)")


def _unfree(configured: Configuration) -> Finding:
    caches = [cache for cache in configured.words("substituters") if any(n in cache for n in _WITH_CUDA)]
    if caches:
        return Finding("Nix CUDA cache", State.OK, " ".join(caches))
    text = (
        "none: cache.nixos.org has nothing unfree, so CUDA's libraries are fetched from NVIDIA and "
        "unpacked here (some GB); what is built for one SM no public cache has anyway"
    )
    return Finding("Nix CUDA cache", State.NOTE, text, _CUDA_CACHE)


def _trust(nix: Nix) -> Finding | None:
    """A note when Nix does not trust this user: its daemon then ignores caches and builders of ours."""
    try:
        facts = nix_command.parsed(nix.run("store", "info", "--json", remote=False))
    except Error:
        return None
    if not isinstance(facts, dict) or facts.get("trusted", 1):
        return None
    text = "the daemon does not trust this user: it ignores --builders and caches that are not in nix.conf"
    return Finding("Nix trust", State.NOTE, text, "extra-trusted-users = YOU (nix.conf of the daemon)")
