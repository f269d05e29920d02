"""Findings about building from source here: Nix, memory, disk, features, caches. For doctor and builds.

None of them is in the way of a build with wheels, so none is worse than a note.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vllm_variants.errors import Error
from vllm_variants.machine import memory
from vllm_variants.model.findings import Finding, State
from vllm_variants.model.platforms import host_system
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
        yield from _of(Nix(path, ""))
    except (Error, OSError, ValueError) as failure:  # a Nix that answers nonsense ends no examination
        text = failure.message if isinstance(failure, Error) else f"{path} is broken: {failure}"
        yield Finding("Nix", State.NOTE, text, "install it again (only the nix and flox builders need it)")


def _of(nix: Nix) -> Iterator[Finding]:
    told = nix.version()
    if not nix_command.new_enough(told):
        wanted = ".".join(map(str, nix_command.MINIMUM))
        known = f"{told} is too old: the pinned nixpkgs needs {wanted}"
        text = known if re.search(r"\d", told) else f"{nix.program} does not say its version: {told!r}"
        yield Finding("Nix", State.NOTE, text, "nix upgrade-nix")
        return
    yield Finding("Nix", State.OK, f"{told} ({nix.program})")
    yield from before_build(nix, nix.configuration(), 1)
    yield _memory()


def before_build(nix: Nix, configured: Configuration, builds: int) -> Iterator[Finding]:
    """What to know before `builds` variants are compiled."""
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
    others = ", ".join(f"{s} too" for s in ("x86_64-linux", "aarch64-linux") if _elsewhere(configured, s))
    if configured.builds(system, [FEATURE]):
        where = f"{len(configured.machines)} remote builders" if configured.machines else "no remote builders"
        return Finding(
            "Nix features", State.OK, "; ".join(filter(None, (f"{FEATURE} for {system}", others, where)))
        )
    return Finding(
        "Nix features",
        State.NOTE,
        f"no machine builds for {system} with {FEATURE}, which every variant requires",
        f"extra-system-features = {FEATURE} (nix.conf), or a builder that has it: --builders",
    )


def _elsewhere(configured: Configuration, system: str) -> bool:
    return system != host_system() and configured.builds(system, [FEATURE])


def _caches(configured: Configuration) -> Finding:
    caches = configured.words("substituters")
    if any("cache.nixos.org" in cache for cache in caches):
        return Finding("Nix caches", State.OK, " ".join(caches))
    text = (
        f"{' '.join(caches) or 'none'}: without cache.nixos.org everything down to the C library is compiled"
    )
    return Finding("Nix caches", State.NOTE, text, "extra-substituters = https://cache.nixos.org (nix.conf)")


def _unfree(configured: Configuration) -> Finding:
    known = [c for c in configured.words("substituters") if any(name in c for name in _WITH_CUDA)]
    if known:
        return Finding("Nix CUDA cache", State.OK, " ".join(known))
    text = (
        "none: cache.nixos.org has nothing unfree, so CUDA's libraries are fetched from NVIDIA and "
        "unpacked here (some GB); what is built for one SM no public cache has anyway"
    )
    return Finding("Nix CUDA cache", State.NOTE, text, _CUDA_CACHE)


def _trust(nix: Nix) -> Finding | None:
    """A note when Nix does not trust this user: its daemon then ignores caches and builders of ours."""
    told = nix.ask("store", "info", "--json", remote=False)
    try:
        facts = json.loads(told.out)
    except (ValueError, RecursionError):
        return None
    if not isinstance(facts, dict) or facts.get("trusted", 1):
        return None
    text = "the daemon does not trust this user: it ignores --builders and caches that are not in nix.conf"
    return Finding("Nix trust", State.NOTE, text, "extra-trusted-users = YOU (nix.conf of the daemon)")
