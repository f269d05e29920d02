"""What every export carries about itself besides its manifest: the bill of materials, and the licences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_variants.export import changes, licences, packages, sbom, spdx
from vllm_variants.export.others import Other
from vllm_variants.export.sbom import Part
from vllm_variants.model.results import Result

_DISTRIBUTION = "LicenseRef-copyright-files-of-the-distribution"
"""The licences of a distribution's packages: their copyright files say them, many not for machines."""


def write(result: Result, folder: Path, others: Sequence[Other] = ()) -> str:
    """Write `sbom.cdx.json` and `licences/` of what is in a result into `folder`; the licence of all of it.

    `others` is what the export holds besides Python packages. The licence is an SPDX expression. Needs no
    network; the same result gives the same bytes. Raises `DamagedError` for a result that has lost
    something, `OSError`.
    """
    found = packages.of_result(result)
    changed = changes.of_result(result, found)
    parts = [Part(package, changed.get(package.name, changes.Changes())) for package in found]
    (folder / sbom.FILE).write_text(sbom.text([result.manifest], parts, others), encoding="utf-8")
    licences.write(folder, found, changed.keys(), others)
    stated = [spdx.expression(licences.of_package(package).name, package.name) for package in found]
    return spdx.all_of([*stated, *map(_expression, others)])


def _expression(other: Other) -> str:
    if other.purl.startswith("pkg:deb/"):
        return _DISTRIBUTION
    return spdx.all_of(spdx.expression(name, other.name) for name in other.licences or ("",))
