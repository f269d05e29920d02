"""A software bill of materials of a result: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/.

One component a package, with its licence and its purl; what slimming changed has a pedigree that names the
published package. No moment and no random number is in it, so the same result gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm_variants import __version__
from vllm_variants.export import licences, pins
from vllm_variants.export.changes import Changes
from vllm_variants.export.others import Other
from vllm_variants.export.packages import Package
from vllm_variants.export.report import timeless
from vllm_variants.model.results import Manifest

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, Pedigree

FILE = "sbom.cdx.json"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "vllm-variants")


@dataclass(frozen=True)
class Part:
    """A package of an export: what was done to it, and the version that it has there.

    `sha256` is of its wheel, of the published one where it was not changed; empty where nobody knows it.
    """

    package: Package
    changes: Changes = field(default_factory=Changes)
    version: str = ""
    sha256: str = ""


def text(manifests: Sequence[Manifest], parts: Sequence[Part], others: Sequence[Other] = ()) -> str:
    """The bill of an export of these results: JSON, keys sorted."""
    from cyclonedx.output.json import JsonV1Dot6

    bom = _bom(manifests, parts, others)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"].pop("timestamp", None)
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _bom(manifests: Sequence[Manifest], parts: Sequence[Part], others: Sequence[Other]) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType

    first = manifests[0]
    tool = Component(type=ComponentType.APPLICATION, name="vllm-variants", version=__version__)
    name = " ".join(manifest.variant for manifest in manifests)
    root = Component(
        type=ComponentType.APPLICATION, name=name, version=first.release, bom_ref=f"{name}@{first.release}"
    )
    components = {part.package.name: _component(part, first) for part in parts}
    bom = Bom(metadata=BomMetaData(component=root))
    bom.metadata.tools.components.add(tool)
    bom.components.update(components.values())
    bom.components.update(_other(other) for other in others)
    if "vllm" in components:
        bom.register_dependency(root, [components["vllm"]])
    for part in parts:
        needed = (components.get(name) for name in pins.requirements_of(part.package, first))
        bom.register_dependency(components[part.package.name], [found for found in needed if found])
    bom.serial_number = _serial_number(manifests, parts, others)
    return bom


def _component(part: Part, manifest: Manifest) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    package = part.package
    version = part.version or package.version
    purl = PackageURL("pypi", name=package.name, version=version)
    stated = licences.of_package(package)
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=version,
        purl=purl,
        bom_ref=str(purl),
        description=str(package.distribution.metadata["Summary"] or "") or None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else [],
        licenses=_licences([stated.name] if stated.name else [], stated.is_expression),
        pedigree=_pedigree(part, manifest) if part.changes else None,
    )


def _pedigree(part: Part, manifest: Manifest) -> Pedigree:
    """That a package is the published one, with less in it."""
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from packageurl import PackageURL

    package = part.package
    purl = PackageURL("pypi", name=package.name, version=package.version)
    published = Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=f"published:{purl}",
    )
    files = part.changes.files
    notes = (
        f"vllm-variants took out of {len(files)} of its files what {manifest.capability.sm} does not run: "
        f"{sum(change.before for change in files)} bytes became {sum(change.after for change in files)}"
    )
    return Pedigree(ancestors=[published], notes=notes)


def _licences(names: Sequence[str], is_expression: bool = True) -> list[Any]:
    """Licences of a component: one expression, or identifiers and names (the format knows no mixture)."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.license import DisjunctiveLicense

    if is_expression and len(names) == 1:
        return [LicenseFactory().make_from_string(names[0])]
    found = [LicenseFactory().make_from_string(name) if is_expression else None for name in names]
    return [
        licence if isinstance(licence, DisjunctiveLicense) else DisjunctiveLicense(name=name)
        for name, licence in zip(names, found, strict=True)
    ]


def _other(other: Other) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        type=ComponentType.LIBRARY,
        name=other.name,
        version=other.version or None,
        purl=PackageURL.from_string(other.purl),
        bom_ref=other.purl,
        description=other.notes or None,
        licenses=_licences(other.licences),
    )


def _serial_number(
    manifests: Sequence[Manifest], parts: Sequence[Part], others: Sequence[Other]
) -> uuid.UUID:
    """An identity that the contents decide; CycloneDX asks for one a bill."""
    facts: Mapping[str, object] = {
        "results": [timeless(manifest) for manifest in manifests],
        "parts": [[part.package.name, part.version or part.package.version, part.sha256] for part in parts],
        "others": [[other.name, other.version, other.purl] for other in others],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return uuid.uuid5(_NAMESPACE, digest)
