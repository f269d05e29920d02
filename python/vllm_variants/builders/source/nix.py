"""The `nix` builder: every asked variant compiled from source by the machine's own Nix.

    evaluate → plan memory → one `nix build` for all → per variant: audit → link → push

Nix does what it is good at (order, sharing, remote machines, caches); what is here reads its events,
says at once what failed and why, and lets nothing count that was not audited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_variants.builders.outcomes import Done, Outcome
from vllm_variants.builders.source.batch import Batch
from vllm_variants.builders.source.options import Options, Show
from vllm_variants.model.requests import Request
from vllm_variants.nix import evaluation as nix_eval
from vllm_variants.nix.command import Nix
from vllm_variants.system.progress import Say


@dataclass(frozen=True)
class NixBuilder:
    """The `nix` builder: one machine's Nix and how to use it."""

    nix: Nix
    options: Options = field(default_factory=Options)
    show: Show | None = None

    def build_all(
        self, requests: Sequence[Request], say: Say, done: Done = lambda outcome: None
    ) -> list[Outcome]:
        """Build every request; one outcome each, in their order, and to `done` as each is known.

        Raises `Interrupted` when asked to stop; `done` has then heard of every variant as well.
        """
        missed = nix_eval.untracked(self.nix.flake)
        if missed:
            some = ", ".join(missed[:3]) + (" …" if len(missed) > 3 else "")
            say(f"Nix does not see files that git does not track ({some}): `git add -N` them if they matter")
        say(f"evaluating {', '.join(request.variant.short for request in requests)} …")
        found = nix_eval.evaluate(self.nix, requests)
        return Batch(self.nix, self.options, self.show, say, done).run(found)
