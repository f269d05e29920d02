"""Examine this machine: what a build by wheels and a result need, and the command that helps."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from vllm_variants.errors import Error, ExitCode, MissingError
from vllm_variants.machine import c_library, detection, gpus, interpreters, memory
from vllm_variants.model.findings import Finding, State
from vllm_variants.model.variants import Matrix, Release
from vllm_variants.store import Store
from vllm_variants.system import uv
from vllm_variants.system.folders import free_bytes

# Measured on a 2-core machine with release 0.13.0 (docs/measurements.md): uv's unpacked wheels plus
# the files that slimming rewrites, and the peak of uv's memory while it unpacks.
DISK_FIRST = 14_000_000_000
DISK_NEXT = 3_000_000_000
MEMORY = 1_000_000_000


def examine(matrix: Matrix, release: Release, store: Store) -> Iterator[Finding]:
    """Every finding, as it is made: some ask the network or start a program."""
    from vllm_variants.nix import findings as nix_findings

    yield _examined("GPU", lambda: _gpu(matrix, release))
    yield _examined("uv", _uv)
    yield from examine_for_wheels(release, store.root)
    yield _compiler()
    yield from nix_findings.examine()


def examine_for_wheels(release: Release, folder: Path) -> Iterator[Finding]:
    """What a build by the `wheels` builder with its store in `folder` needs."""
    yield _examined("Python", lambda: _python(release))
    yield _glibc(release)
    yield _examined("disk", lambda: _disk(folder))
    yield _examined("memory", _memory)
    yield _examined("index", lambda: _index(release))


def _examined(about: str, examine: Callable[[], Finding]) -> Finding:
    """The finding of `examine`, or that it failed: the doctor goes on with the rest."""
    try:
        return examine()
    except (Error, OSError) as failure:
        return Finding.failed(about, failure)


def _gpu(matrix: Matrix, release: Release) -> Finding:
    machine = gpus.machine()
    detected = detection.detect(machine, matrix, release)
    if machine.problem:
        return Finding("GPU", State.NOTE, machine.problem, "none needed to build; results run where a GPU is")
    names = ", ".join(f"{detail.gpu.name} ({detail.gpu.capability})" for detail in detected.gpus)
    if not detected.variants:
        return Finding("GPU", State.PROBLEM, f"{names}, driver {machine.driver}: {detected.explain()}")
    shorts = ", ".join(variant.short for variant in detected.variants)
    return Finding("GPU", State.OK, f"{names}, driver {machine.driver} → {shorts}")


def _python(release: Release) -> Finding:
    interpreter = interpreters.find(release.stack.python)
    return Finding("Python", State.OK, f"{interpreter.version} {interpreter.origin}: {interpreter.path}")


def _uv() -> Finding:
    completed = uv.capture(["--version"])
    version = re.match(r"uv (\d[\w.]*)", completed.stdout)
    if completed.status or not version:
        raise MissingError(
            f"{uv.program()} is not uv: `--version` ended with {completed.status} and prints no version",
            hint=uv.hint(),
        )
    named = os.environ.get("VLLM_VARIANTS_UV")
    origin = f"{named}, which VLLM_VARIANTS_UV names" if named else "brought by vllm-variants"
    return Finding("uv", State.OK, f"uv {version[1]} ({origin})")


def _glibc(release: Release) -> Finding:
    if reason := c_library.problem(release):
        hint = "use a newer distribution, or a container of one"
        return Finding("C library", State.PROBLEM, reason, hint)
    _, version = platform.libc_ver()
    return Finding("C library", State.OK, f"glibc {version} (the wheels need {release.glibc})")


def _disk(folder: Path) -> Finding:
    free = free_bytes(folder)
    text = f"{free / 1e9:.0f} GB free for {folder}"
    needs = f"a first build takes {DISK_FIRST / 1e9:.0f} GB, each further variant {DISK_NEXT / 1e9:.0f} GB"
    if free >= DISK_FIRST:
        return Finding("disk", State.OK, f"{text} ({needs})")
    state = State.NOTE if free >= DISK_NEXT else State.PROBLEM
    return Finding(
        "disk",
        state,
        f"{text}; {needs}",
        "vllm-variants gc, uv cache prune, or set XDG_DATA_HOME elsewhere",
        ExitCode.RESOURCES,
    )


def _memory() -> Finding:
    free = memory.available()
    text = f"{free / 1e9:.1f} GB available (a build with wheels peaks below {MEMORY / 1e9:.0f} GB)"
    if free >= MEMORY:
        return Finding("memory", State.OK, text)
    return Finding("memory", State.PROBLEM, text, "close something large", ExitCode.RESOURCES)


def _index(release: Release) -> Finding:
    # Asks for one small package's versions, through the same client and settings as a build.
    command = ["pip", "compile", "--quiet", "--no-deps", "--no-cache", "--no-header"]
    completed = uv.capture([*command, "--python-version", release.stack.python, "-"], text="toml")
    if completed.status == 0:
        return Finding("index", State.OK, "the package index answers")
    reason = next(iter(completed.stderr.strip().splitlines()), "no answer")
    hint = "check the network, or name a mirror: UV_DEFAULT_INDEX=https://…"
    text = f"the package index does not answer: {reason}"
    return Finding("index", State.PROBLEM, text, hint, ExitCode.RESOURCES)


def _compiler() -> Finding:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and (path := shutil.which(name)):
            return Finding("C compiler", State.OK, f"{path} (no build needs it; Triton does, when vLLM runs)")
    text = "none: no build needs it, but Triton compiles a small launcher with it when vLLM first runs"
    return Finding("C compiler", State.NOTE, text, "sudo apt install gcc, or your system's")
