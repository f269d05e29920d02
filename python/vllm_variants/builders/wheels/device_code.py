"""The two steps that look at device code: slim a fresh tree to one SM, and audit what is there.

Both leave their whole report beside the manifest (`slim.json`, `audit.json`) and its sums in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_variants.audit import AuditReport, audit_tree
from vllm_variants.audit import contents as expected
from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels import native
from vllm_variants.builders.wheels.locks import Lock
from vllm_variants.errors import AuditError, Error
from vllm_variants.fatbin.codecs import requested_codec
from vllm_variants.fatbin.native.compiler import Compiler
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.tree import SlimReport, slim_tree
from vllm_variants.model.requests import Request
from vllm_variants.model.results import MANIFEST, Result
from vllm_variants.system.progress import bar

_BACK = {
    "images": "--no-slim",
    "compress": "--compress none",
    "symbols": "--keep-symbols",
}
"""The option of `build` that leaves out what a rule does."""


def rules_of(request: Request) -> Rules:
    """How a request's libraries are slimmed; with what a GPU has proven (docs/slim.md), so all rules."""
    codec = requested_codec(request.compress, request.release.stack.driver)
    return Rules(request.keep_ptx, compress=codec, keep_symbols=request.keep_symbols)


def stored_alike(results: Iterable[Result], request: Request, lock: Lock) -> list[Path]:
    """The trees of the results whose images the request's may share, stored as its would be: at most two.

    Cubins serve later devices of their major, PTX all later ones: so the nearest device below and the
    nearest above share the most.
    """
    capability, encoding = request.variant.capability, rules_of(request).identity["compress"]
    alike = [result for result in results if _encoding(result, lock) == encoding]
    alike.sort(key=lambda result: result.manifest.capability)
    below = [result.path for result in alike if result.manifest.capability <= capability]
    above = [result.path for result in alike if result.manifest.capability > capability]
    return below[-1:] + above[:1]


def _encoding(result: Result, lock: Lock) -> object:
    """How the images of a result are stored; None where it is not made of the lock's libraries."""
    if result.manifest.facts.get("lock") != lock.digest:
        return None
    steps = {step.get("name"): step for step in result.manifest.facts.get("steps") or ()}
    rules = steps.get("slim", {}).get("rules")
    return rules.get("compress") if isinstance(rules, dict) else None


def slim(
    steps: Steps, request: Request, tree: Path, compiler: Compiler | None, stored: Sequence[Path] = ()
) -> SlimReport | None:
    """Leave in the libraries of `tree` what runs on the variant's SM; None where that is not asked for.

    With a `compiler`, PTX that the device would compile becomes its code. `stored` are results that may
    have images in the form that they get. Raises `Error` for a library that could not be written, and
    `ResourceError`.
    """
    if not request.slim:
        steps.skip("slim", "not asked for")
        return None
    rules = rules_of(request)
    with steps.step("slim") as step, bar("slimming") as advance:
        report = slim_tree(
            tree,
            [request.variant.capability],
            rules,
            native=native.ahead(compiler, steps.say) if compiler else None,
            stored=stored,
            progress=lambda done, total, path: advance(done, total),
            durable=False,  # nobody uses the tree yet: the store syncs what it publishes
        )
        if report.failed:
            raise Error(f"{report.failed[0].path} could not be slimmed: {report.failed[0].kept}")
        facts = report.as_dict()
        _keep(tree, "slim.json", {**facts, "root": "."})
        step.facts |= {key: facts[key] for key in ("before", "after", "ratio", "saved")}
        step.facts |= {"libraries": len(report.changed), "shared": report.shared_images}
        step.facts |= {"rules": rules.identity, "undo": _BACK}
        if compiler:
            step.facts["native"] = native.summary(report.native, compiler)
    return report


def audit(steps: Steps, request: Request, tree: Path) -> AuditReport:
    """Check every container of `tree` against the variant's SM and the release's expectations.

    Raises `AuditError` when device code that the release has for this SM is missing or broken.
    """
    with steps.step("audit") as step:
        known = expected.load(request.release.name, request.variant.system)
        report = audit_tree(tree, request.variant.capability, known)
        facts = report.as_dict()
        _keep(tree, "audit.json", {**facts, "roots": ["."]})
        step.facts |= {
            "verdict": facts["verdict"],
            "totals": facts["totals"],
            "expectations": known is not None,
        }
    if not report.passed:
        raise AuditError(
            f"{request.name} was not linked: {report.missing}",
            hint="`vllm-variants audit` shows every library",
        )
    steps.say(f"audit: {facts['verdict']} for {request.variant.capability.sm}")
    return report


def with_ptx_to_compile(report: AuditReport, tree: Path) -> list[Path]:
    """The audited libraries of `tree` in which something may wait for the driver's compiler.

    An image that the audit does not understand decides nothing in a plan, and may in the audit.
    """
    return [tree / library.path for library in report.libraries if library.jit or library.unknown]


def _keep(tree: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = tree / MANIFEST.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
