"""The steps that look at files: what nothing opens goes, and RECORDs say afterwards what is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vllm_variants.builders.steps import Steps
from vllm_variants.builders.wheels import records, unread
from vllm_variants.builders.wheels.unread import Plan
from vllm_variants.fatbin.tree import SlimReport
from vllm_variants.model.requests import Request


def require_known(without: Sequence[str]) -> None:
    """Raise `UsageError` for a name that no entry of the list of unread files has."""
    unread.require_known(unread.load(), without)


def drop_unread(steps: Steps, request: Request, site: Path) -> Plan | None:
    """Drop from site-packages the files that nothing opens, and those that the request names.

    None where that is not asked for. Before anything else changes: files are known by their hashes.
    """
    if not request.slim or request.keep_unread:
        steps.skip("files", "not asked for")
        return None
    with steps.step("files") as step:
        plan = unread.plan(site, unread.load(), request.without)
        unread.apply(site, plan)
        step.facts |= plan.as_dict()
        step.facts |= {"without": sorted(request.without), "undo": "--keep-unread"}
    return plan


def refresh_records(steps: Steps, site: Path, dropped: Plan | None, slimmed: SlimReport | None) -> None:
    """Make the RECORDs in `site` say what is there, where files went or changed."""
    if dropped is None and slimmed is None:
        steps.skip("records", "no file changed")
        return
    with steps.step("records") as step:
        root, libraries = (slimmed.root, slimmed.changed) if slimmed else ("", [])
        changed = [os.path.relpath(f"{root}/{file.path}", site) for file in libraries]
        report = records.refresh(site, changed, dropped.dropped if dropped else ())
        step.facts |= report.as_dict()
