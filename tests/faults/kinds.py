"""The kinds of rounds, each with its share among them and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from index_lies import lying_index
from kills import kill_audit, kill_build, kill_copy, kill_export, kill_file, kill_gc, kill_native, kill_slim
from odd import damaged_entry, odd_store, odd_tree
from refusals import read_only, read_only_disk, refused, small_disk, small_files
from rounds import Round
from several import builds_and_gcs, changed_meanwhile, two_exports, two_slims


@dataclass(frozen=True)
class Kind:
    """A kind of round: its function, its share among rounds, and what it needs."""

    play: Callable[[Round], None]
    share: int
    needs: frozenset[str] = frozenset()


KINDS: dict[str, Kind] = {
    "kill-slim": Kind(kill_slim, 5),
    "kill-copy": Kind(kill_copy, 3),
    "kill-file": Kind(kill_file, 2),
    "kill-build": Kind(kill_build, 5),
    "kill-gc": Kind(kill_gc, 3),
    "kill-native": Kind(kill_native, 4),
    "kill-export": Kind(kill_export, 3),
    "kill-audit": Kind(kill_audit, 1),
    "refused-call": Kind(refused, 4, frozenset({"shim"})),
    "small-files": Kind(small_files, 1),
    "small-disk": Kind(small_disk, 3, frozenset({"mount"})),
    "read-only-disk": Kind(read_only_disk, 1, frozenset({"mount"})),
    "refused-by-modes": Kind(read_only, 2),
    "two-slims": Kind(two_slims, 3),
    "two-exports": Kind(two_exports, 1),
    "builds-and-gcs": Kind(builds_and_gcs, 3),
    "changed-meanwhile": Kind(changed_meanwhile, 2, frozenset({"shim"})),
    "odd-tree": Kind(odd_tree, 2),
    "odd-store": Kind(odd_store, 1),
    "damaged-entry": Kind(damaged_entry, 1),
    "lying-index": Kind(lying_index, 4),
}
