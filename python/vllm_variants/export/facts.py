"""What every export carries about itself besides its manifest: the bill of materials, and the licences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_variants.export import changes, licences, packages, sbom
from vllm_variants.export.sbom import Other, Part
from vllm_variants.model.results import Result


def write(results: Sequence[Result], folder: Path, others: Sequence[Other] = ()) -> None:
    """Write `sbom.cdx.json` and `licences/` of what is in some results into `folder`.

    `others` is what the export holds besides Python packages. Of several results the packages are those of
    the first: all have the same lock. Needs no network; the same results give the same bytes. Raises
    `DamagedError` for a result that has lost something, `OSError`.
    """
    first = results[0]
    found = packages.of_result(first)
    changed = changes.of_result(first, found)
    parts = [Part(package, changed.get(package.name, changes.Changes())) for package in found]
    bill = sbom.text([result.manifest for result in results], parts, others)
    (folder / sbom.FILE).write_text(bill, encoding="utf-8")
    licences.write(folder, found, changed.keys())
