"""`vllm-variants gc`: remove results that nothing links to."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants import documents
from vllm_variants.cli.output import Json, print_json, say, size
from vllm_variants.store import Kept, Store


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove the results that no result-… link points to, and what killed builds left."""
    collected = Store.default().gc(dry_run=dry_run)
    removed = collected.removed
    if as_json:
        print_json(
            {
                "schema": documents.GC,
                "dry_run": dry_run,
                "removed": [{"path": str(r.path), "bytes": r.bytes, "freed": r.freed} for r in removed],
                "kept": [{"path": str(k.path), "why": k.why, "hint": k.hint} for k in collected.kept],
            }
        )
    done, free = ("would be removed", "would be freed") if dry_run else ("removed", "freed")
    for entry in removed:
        say(f"{'would remove' if dry_run else 'removed'} {entry.path.name} ({size(entry.bytes)})")
    for kept in collected.kept:
        say(_kept(kept))
    freed = sum(entry.freed for entry in removed)
    shared = sum(entry.bytes for entry in removed) - freed
    cache = f"; {size(shared)} more are shared with uv's cache (`uv cache prune`)" if shared > 0 else ""
    say(f"{len(removed)} {done}, {size(freed)} {free}{cache}")
    for error in collected.failed[1:]:
        say(str(error))
    if collected.failed:
        raise collected.failed[0]


def _kept(kept: Kept) -> str:
    return f"left alone: {kept.path} ({kept.why})" + (f"\nhint: {kept.hint}" if kept.hint else "")
