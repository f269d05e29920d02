"""What a report is about: a result, an audit, or one outcome of a batch, with its facts gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_variants.audit import Verdict
from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability
from vllm_variants.model.results import Manifest, Result
from vllm_variants.reports import columns, sizes
from vllm_variants.reports.auditing import Audited
from vllm_variants.reports.packages import NOBODY, Owners
from vllm_variants.reports.reading import document, expected
from vllm_variants.reports.sizes import Package, Saving
from vllm_variants.reports.waiting import WaitingLibrary, waiting


@dataclass(frozen=True)
class Subject:
    """One thing that a report is about. What is not known of it is None or empty.

    `about` are the facts that name it, `sizes` bytes `installed` and `result`; `libraries` and `features`
    have a cell for each of `devices`; `said` (the answer), `totals`, `findings` and `advice` are as the
    audit has them.
    """

    name: str
    about: Mapping[str, Any]
    verdict: str | None
    said: Mapping[str, str] | None
    status: str
    sizes: Mapping[str, int] | None
    savings: tuple[Saving, ...]
    packages: tuple[Package, ...] = ()
    devices: tuple[str, ...] = ()
    libraries: tuple[Mapping[str, Any], ...] = ()
    features: tuple[Mapping[str, Any], ...] = ()
    waiting: tuple[WaitingLibrary, ...] = ()
    totals: Mapping[str, Any] | None = None
    findings: tuple[Mapping[str, str], ...] = ()
    advice: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `about` comes first in it."""
        return {
            "name": self.name,
            **self.about,
            "verdict": self.verdict,
            "status": self.status,
            "sizes": dict(self.sizes) if self.sizes else None,
            "savings": [asdict(saving) for saving in self.savings],
            "packages": [package.as_dict() for package in self.packages],
            "devices": list(self.devices),
            "libraries": [dict(library) for library in self.libraries],
            "features": [dict(feature) for feature in self.features],
            "waiting": [asdict(library) for library in self.waiting],
            "totals": dict(self.totals) if self.totals else None,
            "findings": [dict(finding) for finding in self.findings],
            "advice": [dict(advice) for advice in self.advice],
        }


def of_result(name: str, result: Result, audited: Audited) -> Subject:
    """A result with its audit; `name` is what the person called it.

    Raises `InputError` for a slim report or manifest that is broken, `OSError` where files cannot be read.
    """
    facts = result.manifest.facts
    slim = result.path / "share" / "vllm-variants" / "slim.json"
    with expected(name, "a broken manifest or slim report", hint="build the variant again"):
        if result.manifest.builder == "wheels":
            former = document(slim) if slim.is_file() else None
            packages = sizes.of_result(result.path, facts, former, audited.audit)
        else:
            packages = sizes.of_audit(audited.audit, facts.get("packages", {}))
        return _subject(name, about(result.manifest), audited.audit, audited.matrix, packages, facts)


def of_audit(
    name: str, audit: Mapping[str, Any], matrix: Mapping[str, Any] | None = None, known: Owners = NOBODY
) -> Subject:
    """A document of `audit --json`, with that of `--all-sms` beside it; `InputError` where it is broken."""
    with expected(name, "no audit"):
        facts = {
            **_NOTHING,
            "capability": audit["capability"],
            "release": audit["release"],
            "gpus": _gpus(audit["capability"]),
        }
        return _subject(name, facts, audit, matrix, sizes.of_audit(audit, {}, known), None)


def of_matrix(name: str, matrix: Mapping[str, Any]) -> Subject:
    """A document of `audit --all-sms --json` alone; `InputError` where it is broken."""
    with expected(name, "no audit for every SM"):
        libraries = columns.libraries(None, matrix)
        totals = {
            "libraries": len(libraries),
            "size": sum(library["size"] for library in libraries),
            "device": sum(library["device"] for library in libraries),
        }
        broken = [library for library in libraries if library["problem"]]
        return Subject(
            name,
            {**_NOTHING, "release": matrix["release"]},
            None,
            None,
            "",
            None,
            (),
            packages=tuple(sizes.of_matrix(libraries)),
            devices=tuple(columns.devices(None, matrix)),
            libraries=tuple(libraries),
            features=tuple(columns.features(None, matrix)),
            totals=totals,
            findings=tuple(
                {"verdict": "missing", "library": row["path"], "what": row["problem"]} for row in broken
            ),
        )


def of_outcome(outcome: Mapping[str, Any]) -> Subject:
    """One variant of `build --json`; one that is broken raises what Python raises."""
    name, facts = str(outcome["variant"]), outcome.get("manifest")
    if not facts:
        finding = {"verdict": "missing", "library": "", "what": str(outcome.get("reason", ""))}
        return Subject(
            name,
            {**_NOTHING, "variant": name},
            None,
            None,
            str(outcome["status"]),
            None,
            (),
            findings=(finding,),
        )
    manifest = Manifest(dict(facts))
    audit: Mapping[str, Any] = next((step for step in facts["steps"] if step["name"] == "audit"), {})
    return Subject(
        name,
        about(manifest),
        audit.get("verdict"),
        None,
        str(outcome["status"]),
        manifest.bytes or None,
        tuple(sizes.savings(facts)),
        totals=_totals(audit) if "totals" in audit else None,
    )


def _subject(
    name: str,
    facts: Mapping[str, Any],
    audit: Mapping[str, Any],
    matrix: Mapping[str, Any] | None,
    packages: list[Package],
    manifest: Mapping[str, Any] | None,
) -> Subject:
    measured = dict(manifest.get("bytes", {})) if manifest else {}
    if audit["verdict"] is not None:
        Verdict(audit["verdict"])
    return Subject(
        name,
        facts,
        audit["verdict"],
        audit.get("answer"),
        "built" if manifest else "",
        measured or None,
        tuple(sizes.savings(manifest)) if manifest else (),
        packages=tuple(packages),
        devices=tuple(columns.devices(audit, matrix)),
        libraries=tuple(columns.libraries(audit, matrix)),
        features=tuple(columns.features(audit, matrix)),
        waiting=tuple(waiting(audit)),
        totals=_totals(audit),
        findings=tuple(audit["findings"]),
        advice=tuple(audit.get("advice", ())),
    )


_TOTALS = ("libraries", "size", "device", "foreign", "jit_containers", "jit_bytes", "jit_driver")


def _totals(audit: Mapping[str, Any]) -> dict[str, Any]:
    return {name: audit["totals"].get(name) for name in _TOTALS}


_NOTHING: Mapping[str, Any] = {
    "variant": None,
    "short": None,
    "capability": None,
    "system": None,
    "release": None,
    "builder": None,
    "native": None,
    "python": None,
    "cuda": None,
    "torch": None,
    "driver": None,
    "tool": None,
    "created": None,
    "gpus": [],
    "versions": {},
}


def about(manifest: Manifest) -> dict[str, Any]:
    """The facts of a result that name it, from its manifest."""
    facts = manifest.facts
    slim: Mapping[str, Any] = next((step for step in facts["steps"] if step["name"] == "slim"), {})
    stack = facts["stack"]
    return {
        "variant": manifest.variant,
        "short": manifest.short,
        "capability": str(manifest.capability),
        "system": manifest.system,
        "release": manifest.release,
        "builder": manifest.builder,
        "native": "native" in slim,
        "python": facts["python"],
        "cuda": stack["cuda"],
        "torch": stack["torch"],
        "driver": stack["driver"],
        "tool": facts.get("tool"),
        "created": manifest.created or None,
        "gpus": _gpus(str(manifest.capability)),
        "versions": dict(facts["packages"]),
    }


def _gpus(capability: str | None) -> list[str]:
    """The GPUs of a capability that the matrix names, each once."""
    if not capability:
        return []
    device = Capability.parse(capability)
    found: dict[str, None] = {}
    for variant in matrix.load().variants.values():
        rows = [(variant.capability, variant.gpus), *((r.capability, r.gpus) for r in variant.related)]
        found |= {gpu: None for own, gpus in rows if own == device for gpu in gpus}
    return list(found)


def site_packages(path: Path) -> Path:
    """The site-packages folder in or at a path, for its RECORDs; the path itself where there is none."""
    return next(iter(sorted(path.glob("lib/python3*/site-packages"))), path)
