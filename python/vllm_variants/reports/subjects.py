"""What a report is about: a result, an audit, or one outcome of a batch, with its facts gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_variants.model import matrix
from vllm_variants.model.capability import Capability
from vllm_variants.model.results import Manifest, Result
from vllm_variants.reports import sizes
from vllm_variants.reports.packages import NOBODY, Owners
from vllm_variants.reports.reading import document, expected
from vllm_variants.reports.serving import serves
from vllm_variants.reports.sizes import Package, Saving
from vllm_variants.reports.waiting import WaitingLibrary, waiting


@dataclass(frozen=True)
class Subject:
    """One thing that a report is about. What is not known of it is None or empty.

    `about` are the facts that name it, `sizes` bytes `installed` and `result`, `libraries` those with device
    code with what they come to, `totals` and `findings` as the audit has them.
    """

    name: str
    about: Mapping[str, Any]
    verdict: str | None
    status: str
    sizes: Mapping[str, int] | None
    savings: tuple[Saving, ...]
    packages: tuple[Package, ...]
    libraries: tuple[Mapping[str, Any], ...]
    waiting: tuple[WaitingLibrary, ...]
    totals: Mapping[str, Any] | None
    findings: tuple[Mapping[str, str], ...]

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
            "libraries": [dict(library) for library in self.libraries],
            "waiting": [asdict(library) for library in self.waiting],
            "totals": dict(self.totals) if self.totals else None,
            "findings": [dict(finding) for finding in self.findings],
        }


def of_result(name: str, result: Result, audit: Mapping[str, Any]) -> Subject:
    """A result with its audit; `name` is what the person called it.

    Raises `InputError` for a slim report or manifest that is broken, `OSError` where files cannot be measured.
    """
    facts = result.manifest.facts
    slim = result.path / "share" / "vllm-variants" / "slim.json"
    with expected(name, "a broken manifest or slim report", hint="build the variant again"):
        if result.manifest.builder == "wheels":
            former = document(slim) if slim.is_file() else None
            packages = sizes.of_result(result.path, facts, former, audit)
        else:
            packages = sizes.of_audit(audit, facts.get("packages", {}))
        return _subject(name, about(result.manifest), audit, packages, facts)


def of_audit(name: str, audit: Mapping[str, Any], known: Owners = NOBODY) -> Subject:
    """A document of `audit --json`; `InputError` where it is broken."""
    with expected(name, "no audit"):
        facts = {**_NOTHING, "capability": audit["capability"], "release": audit["release"],
                 "gpus": _gpus(audit["capability"])}  # fmt: skip
        return _subject(name, facts, audit, sizes.of_audit(audit, {}, known), None)


def of_outcome(outcome: Mapping[str, Any]) -> Subject:
    """One variant of `build --json`; `InputError` where it is broken."""
    with expected("the batch", "no outcomes of builds"):
        name, facts = str(outcome["variant"]), outcome.get("manifest")
        manifest = Manifest(dict(facts)) if facts else None
        reason = {} if outcome["status"] == "built" else {"library": "", "what": outcome.get("reason", "")}
        return Subject(
            name, about(manifest) if manifest else {**_NOTHING, "variant": name},
            manifest.audited.get("verdict") or _verdict(manifest) if manifest else None,
            str(outcome["status"]), manifest.bytes or None if manifest else None,
            tuple(sizes.savings(facts)) if facts else (), (), (), (),
            manifest.audited or None if manifest else None,
            ({"verdict": "missing", **reason},) if reason else (),
        )  # fmt: skip


def _verdict(manifest: Manifest) -> str | None:
    steps = {step["name"]: step for step in manifest.facts["steps"]}
    return steps.get("audit", {}).get("verdict")


def _subject(name: str, facts: Mapping[str, Any], audit: Mapping[str, Any], packages: list[Package],
             manifest: Mapping[str, Any] | None) -> Subject:  # fmt: skip
    measured = dict(manifest.get("bytes", {})) if manifest else {}
    return Subject(
        name, facts, audit["verdict"], "built" if manifest else "", measured or None,
        tuple(sizes.savings(manifest)) if manifest else (), tuple(packages),
        tuple(_library(library) for library in audit["libraries"]), tuple(waiting(audit)),
        audit["totals"], tuple(audit["findings"]),
    )  # fmt: skip


def _library(library: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path": library["path"],
        "size": library["size"],
        "device": sum(group["bytes"] for group in library["images"]),
        "containers": library["containers"],
        "serves": str(serves(library)),
        "fits": dict(library["fits"]),
        "foreign": library["foreign"],
        "problem": library["problem"],
    }


_NOTHING: Mapping[str, Any] = {
    "variant": None, "short": None, "capability": None, "system": None, "release": None, "builder": None,
    "native": None, "python": None, "cuda": None, "torch": None, "driver": None, "tool": None, "created": None,
    "gpus": [], "versions": {},
}  # fmt: skip


def about(manifest: Manifest) -> dict[str, Any]:
    """The facts of a result that name it, from its manifest."""
    facts = manifest.facts
    slim: Mapping[str, Any] = next((step for step in facts["steps"] if step["name"] == "slim"), {})
    stack = facts["stack"]
    return {
        "variant": manifest.variant, "short": manifest.short, "capability": str(manifest.capability),
        "system": manifest.system, "release": manifest.release, "builder": manifest.builder,
        "native": "native" in slim, "python": facts["python"], "cuda": stack["cuda"], "torch": stack["torch"],
        "driver": stack["driver"], "tool": facts.get("tool"), "created": manifest.created or None,
        "gpus": _gpus(str(manifest.capability)), "versions": dict(facts["packages"]),
    }  # fmt: skip


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
