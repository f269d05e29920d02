"""What was exported: the manifest that every export carries, and what the command line prints of it.

Both are a document `vllm-variants/export/1`. The one that is carried has no path, no time and nothing of the
machine that made it: the same result gives the same bytes wherever it is exported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_variants import __version__, documents
from vllm_variants.export.destinations import Destination, Form
from vllm_variants.model.results import Manifest, Result

MANIFEST = Path("share", "vllm-variants", "export.json")
"""Where the manifest is in an export that is a tree; a wheelhouse and an image layout have it at the top."""


@dataclass(frozen=True)
class Exported:
    """What was made: `bytes` are those of the files, `facts` are the form's own."""

    destination: Destination
    results: tuple[Result, ...]
    bytes: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The document that the command line prints."""
        path = {"path": str(self.destination.path), "bytes": self.bytes}
        return {**document(self.destination.form, self.results, self.facts), **path}


def document(form: Form, results: Sequence[Result], facts: Mapping[str, Any]) -> dict[str, object]:
    """The manifest of an export: what it is made of, and the form's own `facts`."""
    return {
        "schema": documents.EXPORT,
        "form": form.value,
        "tool": __version__,
        "results": [_source(result.manifest) for result in results],
        **facts,
    }


def text(document: Mapping[str, object]) -> str:
    """A document as it lies in an export: the same facts give the same bytes."""
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def timeless(manifest: Manifest) -> dict[str, Any]:
    """A result's manifest without what differs between two builds of the same: moments and durations."""
    facts = {name: value for name, value in manifest.facts.items() if name != "created"}
    steps = [{k: v for k, v in step.items() if k != "seconds"} for step in manifest.facts.get("steps") or ()]
    return {**facts, "steps": steps} if steps else facts


def _source(manifest: Manifest) -> dict[str, object]:
    facts = manifest.facts
    identity = json.dumps(timeless(manifest), sort_keys=True).encode()
    return {
        **{
            name: facts[name]
            for name in ("variant", "short", "sm", "capability", "system", "release", "stack")
        },
        "lock": facts["lock"],
        "manifest": f"sha256:{hashlib.sha256(identity).hexdigest()}",
    }
