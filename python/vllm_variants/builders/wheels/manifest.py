"""The manifest of a wheels result: what is in it and how it came about."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from vllm_variants import __version__
from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels.locks import Lock
from vllm_variants.machine.interpreters import Interpreter
from vllm_variants.model.requests import Request
from vllm_variants.model.results import MANIFEST, SCHEMA
from vllm_variants.system import http


def describe(request: Request) -> dict[str, object]:
    """The facts that every builder's manifest begins with: the variant, its release and stack."""
    variant, release = request.variant, request.release
    return {
        "schema": SCHEMA,
        "variant": request.name,
        "short": variant.short,
        "sm": variant.capability.sm,
        "capability": str(variant.capability),
        "system": variant.system,
        "release": release.name,
        "stack": release.stack.as_dict(),
    }


def write(
    tree: Path,
    request: Request,
    lock: Lock,
    interpreter: Interpreter,
    steps: Steps,
    size: Mapping[str, int],
    more: Mapping[str, object],
) -> None:
    """Write `share/vllm-variants/manifest.json` into the finished `tree`; `size` is in bytes."""
    facts = {
        **describe(request),
        "builder": "wheels",
        "python": interpreter.version,
        "tool": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lock": lock.digest,
        "index": http.without_credentials(request.index) if request.index else None,
        "packages": _packages(tree, request.release.stack.python),
        "bytes": size,
        **more,
        "steps": [step.as_dict() for step in steps.done],
    }
    path = tree / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _packages(tree: Path, minor: str) -> dict[str, str]:
    site = tree / "lib" / f"python{minor}" / "site-packages"
    found = {
        re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in distributions(path=[str(site)])
    }
    return dict(sorted(found.items()))
