"""The two steps that look at device code: slim a fresh tree to one SM, and audit what is there.

Both leave their whole report beside the manifest (`slim.json`, `audit.json`) and its sums in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_variants.audit import audit_tree
from vllm_variants.audit import contents as expected
from vllm_variants.builders.steps import Steps
from vllm_variants.errors import AuditError, Error
from vllm_variants.fatbin.rules import Rules
from vllm_variants.fatbin.tree import slim_tree
from vllm_variants.model.requests import Request
from vllm_variants.model.results import MANIFEST
from vllm_variants.system.progress import bar


def slim(steps: Steps, request: Request, tree: Path) -> None:
    """Drop every image that cannot run on the variant's SM from the libraries of `tree`."""
    if not request.slim:
        steps.skip("slim", "not asked for")
        return
    with steps.step("slim") as step, bar("slimming") as advance:
        report = slim_tree(
            tree,
            [request.variant.capability],
            Rules(keep_ptx=request.keep_ptx),
            progress=lambda done, total, path: advance(done, total),
            durable=False,  # nobody uses the tree yet: the store syncs what it publishes
        )
        if report.failed:
            raise Error(f"{report.failed[0].path} could not be slimmed: {report.failed[0].kept}")
        facts = report.as_dict()
        _keep(tree, "slim.json", {**facts, "root": "."})
        step.facts |= {key: facts[key] for key in ("before", "after", "ratio")}
        step.facts["libraries"] = len(report.changed)
        step.facts["keep_ptx"] = request.keep_ptx


def audit(steps: Steps, request: Request, tree: Path) -> None:
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


def _keep(tree: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = tree / MANIFEST.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
