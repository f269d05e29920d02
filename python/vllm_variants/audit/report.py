"""The report over many libraries: what is wrong with them, and the verdict that follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllm_variants import documents
from vllm_variants.audit.contents import Expectations
from vllm_variants.audit.library import LibraryAudit, jit_bytes, jit_driver
from vllm_variants.model.capability import Capability

WORTH_DROPPING = 0x10000
"""Bytes of a library; strays of the compiler's default target are less."""


class Verdict(StrEnum):
    """What an audit comes to, from best to worst; a report has the worst of its findings."""

    PASS = "pass"  # everything that can matter has machine code that runs
    JIT = "jit"  # some containers run only after the driver compiled them
    FOREIGN = "foreign"  # bytes that can never run there take room
    MISSING = "missing"  # vLLM's own code for this SM is not there, or a file is broken


@dataclass(frozen=True)
class AuditFinding:
    """One fact that decides a verdict: about which library, and what, as a clause."""

    verdict: Verdict
    library: str
    what: str

    def as_dict(self) -> dict[str, str]:
        """The finding as JSON."""
        return {"verdict": str(self.verdict), "library": self.library, "what": self.what}


@dataclass(frozen=True)
class AuditReport:
    """Libraries with device code, judged for `capability` (None: only counted, and no verdict).

    `release` is the one they were held to, empty for none.
    """

    roots: tuple[str, ...]
    capability: Capability | None
    libraries: tuple[LibraryAudit, ...]
    findings: tuple[AuditFinding, ...]
    release: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """The worst finding's."""
        if self.capability is None:
            return None
        order = list(Verdict)
        return max((f.verdict for f in self.findings), key=order.index, default=Verdict.PASS)

    @property
    def passed(self) -> bool:
        """Whether it can be used as it is: nothing missing, and every file could be read."""
        return all(finding.verdict is not Verdict.MISSING for finding in self.findings)

    @property
    def missing(self) -> str:
        """What is missing or broken, as one clause: the first finding, and how many more; empty: nothing."""
        missing = [finding for finding in self.findings if finding.verdict is Verdict.MISSING]
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        return f"{missing[0].library}: {missing[0].what}{more}" if missing else ""

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON; sizes and sums in bytes, `jit_driver` a driver's branch such as 575."""
        return {
            "schema": documents.AUDIT,
            "roots": list(self.roots),
            "capability": str(self.capability) if self.capability else None,
            "release": self.release or None,
            "verdict": str(self.verdict) if self.verdict else None,
            "findings": [finding.as_dict() for finding in self.findings],
            "totals": {
                "libraries": len(self.libraries),
                "size": sum(library.size for library in self.libraries),
                "device": sum(library.device_bytes for library in self.libraries),
                "foreign": sum(library.foreign for library in self.libraries),
                "spare": sum(library.spare for library in self.libraries),
                "jit_containers": len({(lib.path, j.offset) for lib in self.libraries for j in lib.jit}),
                "jit_bytes": jit_bytes(self.libraries),
                "jit_driver": jit_driver(self.libraries),
                "stubs": sum(library.stubs for library in self.libraries),
            },
            "libraries": [library.as_dict() for library in self.libraries],
        }


def judge(
    roots: tuple[str, ...],
    libraries: tuple[LibraryAudit, ...],
    capability: Capability | None,
    expectations: Expectations | None,
) -> AuditReport:
    """The report over `libraries`, found below `roots`, with its findings, the worst first.

    `capability` is the device that they are judged for, `expectations` what they should hold; without the
    first there is no verdict, without the second nothing is missing that is not there.
    """
    broken = [library for library in libraries if library.problem]
    findings = [AuditFinding(Verdict.MISSING, library.path, library.problem) for library in broken]
    if capability:
        findings += _missing(libraries, capability, expectations)
        foreign = [library for library in libraries if library.foreign >= WORTH_DROPPING]
        findings += [_foreign(library, capability) for library in foreign]
        findings += [_jit(library) for library in libraries if library.jit]
    release = expectations.release if expectations else ""
    return AuditReport(roots, capability, libraries, tuple(findings), release)


def _missing(
    libraries: tuple[LibraryAudit, ...], device: Capability, expectations: Expectations | None
) -> list[AuditFinding]:
    findings = []
    for name in expectations.libraries if expectations else ():
        named: list[LibraryAudit | None] = [
            library for library in libraries if f"/{library.path}".endswith(f"/{name}")
        ]
        for library in named or [None]:  # every one of that name is held to it
            if library and library.problem:
                continue  # that is a finding already
            if expectations and (what := expectations.missing(library, name, device)):
                findings.append(AuditFinding(Verdict.MISSING, library.path if library else name, what))
    return findings


def _foreign(library: LibraryAudit, device: Capability) -> AuditFinding:
    return AuditFinding(
        Verdict.FOREIGN, library.path, f"{library.foreign} bytes can never run on {device.sm}"
    )


def _jit(library: LibraryAudit) -> AuditFinding:
    containers = len({container.offset for container in library.jit})
    cost = f"the driver compiles {jit_bytes([library])} bytes of it at first use"
    oldest = jit_driver([library])
    cost += f", and must be {oldest} or newer for that" if oldest else ""
    what = f"PTX only in {containers} of {library.containers} containers: {cost}"
    return AuditFinding(Verdict.JIT, library.path, what)
