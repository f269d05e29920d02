"""A result small enough to read, slimmed by the real slimmer, and other things that there are reports of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from making import cubin, library, ptx, section

import vllm_variants

SITE = "lib/python3.12/site-packages"
HOSTILE = "a</script><script>window.pwned=1</script><img src=x onerror=window.pwned=2>.so"
HOSTILE_FOLDER = '"><svg onload=window.pwned=3>'
NATIVE = section(
    [cubin("sm_80", 1_100_000), cubin("sm_90", 70_000)],
    [cubin("sm_80", 80_000), cubin("sm_90", 60_000)],
)
WAITS = section([cubin("sm_80", 50_000), ptx("compute_80", 2_000_000)], [cubin("sm_90", 40_000)])


RELEASE = "0.99.0"
"""One for which nothing says what it must hold."""


def make(root: Path, *, native: bool = False, release: str = RELEASE) -> Path:
    """Write a result at `root` and return it: torch, which runs, and vLLM, which waits unless `native`."""
    site = root / SITE
    files = {"torch/lib/libtorch_cuda.so": NATIVE, "vllm/_C.abi3.so": NATIVE if native else WAITS}
    for name, code in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        library(site / name, code)
    (site / "torch" / "__init__.py").write_text("import ctypes\n")
    (site / "vllm" / "__pycache__").mkdir()
    (site / "vllm" / "__pycache__" / "x.cpython-312.pyc").write_bytes(b"c" * 3000)
    for name, version, owned in (
        ("torch", "2.9.1", "torch/__init__.py"),
        ("vllm", release, "vllm/_C.abi3.so"),
    ):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        listed = [path for path in files if path.startswith(f"{name}/")] + [owned]
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in listed))
    (root / "bin").mkdir()
    (root / "bin" / "python").write_text("#!/bin/sh\n")
    (root / "bin" / "python").chmod(0o755)
    slimmed = vllm_variants.slim(root, "sm90", in_place=True).as_dict()
    share = root / "share" / "vllm-variants"
    share.mkdir(parents=True)
    (share / "slim.json").write_text(json.dumps({**slimmed, "root": "."}))
    (share / "manifest.json").write_text(json.dumps(manifest(slimmed, native, release)))
    return root


def manifest(slimmed: dict[str, Any], native: bool, release: str) -> dict[str, Any]:
    """The manifest of that result: what went is a file of 4 MB, and bytecode came."""
    rules = {"keep_ptx": False, "resources": True, "compress": "zstd 1.5.7 level 9", "keep_symbols": False}
    compiler = {"ptxas": "12.9", "build": "1", "sha256": "0" * 64}
    compiled = {
        "compiler": compiler,
        "cubins": 1,
        "from_cache": 0,
        "cpu_seconds": 1.0,
        "ptx_bytes": 9,
        "cubin_bytes": 9,
        "left": [],
    }
    totals = {
        "libraries": 2,
        "size": 1,
        "device": 1,
        "foreign": 0,
        "spare": 0,
        "jit_containers": 0 if native else 1,
        "jit_bytes": 1,
        "jit_seconds": 2.0,
        "jit_driver": 575,
        "stubs": 1,
    }
    gone = {"entry": "unread", "path": "torch/bin/protoc", "bytes": 4_000_000}
    return {
        "schema": 1,
        "variant": "vllm-python312-cuda12_9-sm90",
        "short": "sm90",
        "sm": "sm90",
        "capability": "9.0",
        "system": "x86_64-linux",
        "release": release,
        "builder": "wheels",
        "python": "3.12.1",
        "tool": "0.1.0",
        "stack": {"python": "3.12", "cuda": "12.9", "driver": "560", "torch": "2.9.1", "cutlass": ["4.2.1"]},
        "created": "2026-11-26T11:04:48Z",
        "lock": "sha256:" + "0" * 64,
        "index": None,
        "packages": {"torch": "2.9.1", "vllm": release},
        "bytes": {"installed": slimmed["before"] + 4_000_000, "result": slimmed["after"]},
        "waiting": {"containers": 1, "libraries": 1, "cpu_seconds": 5},
        "steps": [
            {"name": "install", "status": "ran", "seconds": 1.0, "site_packages": SITE},
            {
                "name": "files",
                "status": "ran",
                "seconds": 1.0,
                "saved": 4_000_000,
                "files": [gone],
                "left": [],
                "without": [],
                "undo": "--keep-unread",
            },
            {
                "name": "slim",
                "status": "ran",
                "seconds": 1.0,
                "before": slimmed["before"],
                "after": slimmed["after"],
                "ratio": slimmed["ratio"],
                "saved": slimmed["saved"],
                "libraries": 2,
                "shared": 0,
                "rules": rules,
                "undo": {"images": "--no-slim", "compress": "--compress none", "symbols": "--keep-symbols"},
                **({"native": compiled} if native else {}),
            },
            {
                "name": "bytecode",
                "status": "ran",
                "seconds": 1.0,
                "which": "serving",
                "modules": 1,
                "bytes": 3000,
                "sha256": "5b" * 32,
                "shared": 0,
                "undo": "--bytecode none",
            },
            {
                "name": "audit",
                "status": "ran",
                "seconds": 1.0,
                "verdict": "pass" if native else "jit",
                "totals": totals,
                "expectations": True,
            },
        ],
    }


def batch(result: Path) -> dict[str, Any]:
    """What `build --json` would say of that result, and of a variant that failed."""
    facts = json.loads((result / "share" / "vllm-variants" / "manifest.json").read_text())
    outcome = "vllm-variants/outcome/1"
    return {
        "schema": "vllm-variants/build/1",
        "outcomes": [
            {
                "schema": outcome,
                "variant": facts["variant"],
                "status": "built",
                "link": "result",
                "path": str(result),
                "manifest": facts,
            },
            {
                "schema": outcome,
                "variant": "vllm-python312-cuda12_9-sm80",
                "status": "failed",
                "reason": "the disk is full",
            },
        ],
    }


def foreign_tree(root: Path) -> Path:
    """A tree of somebody else: names that are markup, one that is no UTF-8, and a broken library."""
    folder = root / HOSTILE_FOLDER
    folder.mkdir(parents=True)
    library(root / "kernels.so", WAITS)
    library(folder / "inner.so", NATIVE)
    library(root / "hostile.so", NATIVE).rename(root / HOSTILE.replace("/", "∕"))
    library(root / "odd.so", NATIVE).rename(
        root / b"odd-\xff-\xe2\x80\xae.so".decode("utf-8", "surrogateescape")
    )
    (root / "broken.so").write_bytes((root / "kernels.so").read_bytes()[:300])
    return root


def run_of_checks(**facts: Any) -> dict[str, Any]:
    """What `verify --json` would say of that result on a card."""
    passed = {
        "check": "norm.rms_norm",
        "status": "ok",
        "expected": "ok",
        "verdict": "passed",
        "first_ms": 61.0,
        "median_ms": 0.5,
        "error": 0.001,
        "tolerance": 0.002,
        "image": "sm_90",
        "cases": [],
    }
    slow = {**passed, "check": "marlin.fp8", "first_ms": 239_000.0, "image": "compute_80 → sm_90"}
    skipped = {
        "check": "all_reduce.custom",
        "status": "skipped",
        "expected": "ok",
        "verdict": "skipped",
        "reason": "it needs two cards",
        "sentence": "it needs two cards",
    }
    return {
        "schema": "vllm-variants/verify/1",
        "result": "r",
        "variant": "vllm-python312-cuda12_9-sm90",
        "release": RELEASE,
        "builder": "wheels",
        "native": False,
        "driver": "580.159.04",
        "tool": "0.1.0",
        "gpu": {"index": 0, "id": "GPU-1", "name": "NVIDIA H100", "capability": "9.0", "memory": 85520809984},
        "command": "vllm-variants verify sm90",
        "seed": 1,
        "finished": "2026-11-26T02:18:48Z",
        "good": True,
        "summary": "2 ok",
        "checks": [passed, slow, skipped],
        **facts,
    }
