"""`vllm-variants gc`: remove results that nothing links to."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_variants import documents
from vllm_variants.cli.options import DryRun, Json
from vllm_variants.cli.output import print_json, say, size
from vllm_variants.store import Kept, Store


def gc(
    dry_run: DryRun = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="Remove the compiled code that native builds keep, instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove the results that no result-… link points to, and what killed builds left."""
    if cache:
        _clear_cache(dry_run, as_json)
        return
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
    also = f"; {size(shared)} more are shared with uv's cache (`uv cache prune`)" if shared > 0 else ""
    say(f"{len(removed)} {done}, {size(freed)} {free}{also}")
    for error in collected.failed[1:]:
        say(str(error))
    if collected.failed:
        raise collected.failed[0]


def _clear_cache(dry_run: bool, as_json: bool) -> None:
    """Remove the cache of cubins: a native build then compiles again."""
    from vllm_variants.fatbin.native.cache import Cache, default_folder

    cubins = Cache(default_folder(), note=say)
    usage = cubins.usage() if dry_run else cubins.remove()
    if as_json:
        print_json(
            {
                "schema": documents.GC_CACHE,
                "dry_run": dry_run,
                "path": str(cubins.root),
                "cubins": usage.count,
                "bytes": usage.bytes,
            }
        )
    say(f"{usage.count} cubins {'would be removed' if dry_run else 'removed'} ({size(usage.bytes)})")


def _kept(kept: Kept) -> str:
    return f"left alone: {kept.path} ({kept.why})" + (f"\nhint: {kept.hint}" if kept.hint else "")
