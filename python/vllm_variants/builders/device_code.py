"""The two steps that look at device code: slim a fresh tree to one SM, and audit it."""

from __future__ import annotations

from pathlib import Path

from vllm_variants.builders import Request
from vllm_variants.builders.steps import Steps


def slim(steps: Steps, request: Request, tree: Path) -> None:
    """Drop every image that cannot run on the variant's SM from the libraries of `tree`."""
    steps.skip("slim", "not asked for" if not request.slim else "this version has no slimmer")


def audit(steps: Steps, request: Request, tree: Path) -> None:
    """Check that every container of `tree` has what the variant's SM needs."""
    steps.skip("audit", "this version has no audit")
