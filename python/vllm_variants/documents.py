"""The JSON documents of this package: the name of each, and the JSON Schema that describes it.

A document says what it is in `schema`: a name and a number, `vllm-variants/audit/1`, described by
`schemas/audit-1.json`. docs/json.md says what of it is stable, and when a number rises. The manifest of
a result has a bare number there, `model.results.SCHEMA`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vllm_variants import data
from vllm_variants.errors import UsageError

ADVISORIES = "vllm-variants/advisories/1"
AUDIT = "vllm-variants/audit/1"
AUDIT_MATRIX = "vllm-variants/audit-matrix/1"
AUDIT_WHY = "vllm-variants/audit-why/1"
AUDITS = "vllm-variants/audits/1"
BUILD = "vllm-variants/build/1"
DETECT = "vllm-variants/detect/1"
DOCS = "vllm-variants/docs/1"
DOCTOR = "vllm-variants/doctor/1"
EVIDENCE = "vllm-variants/evidence/1"
EXPORT = "vllm-variants/export/1"
WHEEL = "vllm-variants/wheel/1"
GC = "vllm-variants/gc/1"
GC_CACHE = "vllm-variants/gc-cache/1"
LIST = "vllm-variants/list/1"
LOCK = "vllm-variants/lock/1"
MANIFEST = "vllm-variants/manifest/1"
OUTCOME = "vllm-variants/outcome/1"
PIN = "vllm-variants/pin/1"
REPORT = "vllm-variants/report/1"
RELEASE = "vllm-variants/release/1"
RESULTS = "vllm-variants/results/1"
SIGNATURES = "vllm-variants/signatures/1"
SLIM = "vllm-variants/slim/1"
VERIFY = "vllm-variants/verify/1"
VERIFY_CHECK = "vllm-variants/verify-check/1"
VERIFY_COMPARE = "vllm-variants/verify-compare/1"
VERIFY_COMPARED = "vllm-variants/verify-compared/1"
VERIFY_LIST = "vllm-variants/verify-list/1"


def names() -> list[str]:
    """The `schema` of every document that is described, sorted: `vllm-variants/audit/1`, …"""
    files = sorted((data.root() / "schemas").glob("*.json"))
    return ["vllm-variants/{}/{}".format(*path.stem.rsplit("-", 1)) for path in files]


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the documents whose `schema` is `name`, whole in itself.

    The schemas that it refers to are among its `$defs`. Raises `UsageError` for a name that no document
    of this version has.
    """
    if name not in names():
        raise UsageError(f"no document is called {name!r}", hint=f"choose one of {', '.join(names())}")
    file = name.removeprefix("vllm-variants/").replace("/", "-") + ".json"
    whole = _read(file)
    parts: dict[str, Any] = {}
    missing = set(_references(whole)) - {file}
    while missing:
        part = missing.pop()
        parts[part] = _read(part)
        missing |= set(_references(parts[part])) - {file, *parts}
    return whole | {"$defs": whole.get("$defs", {}) | parts} if parts else whole


def _read(file: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((data.root() / "schemas" / file).read_text(encoding="utf-8"))
    return read


def _references(node: Any) -> Iterator[str]:
    """The files that a schema refers to."""
    if isinstance(node, dict):
        if file := str(node.get("$ref", "")).partition("#")[0]:
            yield file
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _references(inner)
