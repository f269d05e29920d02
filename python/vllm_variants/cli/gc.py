"""`vllm-variants gc`: remove results that nothing links to."""

from __future__ import annotations

from vllm_variants.cli.output import Json, print_json, say, size
from vllm_variants.store import Store


def gc(as_json: Json = False) -> None:
    """Remove the results that no result-… link points to, and what killed builds left."""
    removed = Store.default().gc()
    if as_json:
        print_json([{"path": str(r.path), "bytes": r.bytes, "freed": r.freed} for r in removed])
    for entry in removed:
        say(f"removed {entry.path.name} ({size(entry.bytes)})")
    freed = sum(entry.freed for entry in removed)
    shared = sum(entry.bytes for entry in removed) - freed
    cache = f"; {size(shared)} more are shared with uv's cache (`uv cache prune`)" if shared > 0 else ""
    say(f"{len(removed)} removed, {size(freed)} freed{cache}")
