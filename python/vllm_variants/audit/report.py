"""The report over many libraries: what is wrong with them, and the verdict that follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from vllm_variants import documents
from vllm_variants.audit import contents
from vllm_variants.audit.advice import Advice, Circumstances, advise
from vllm_variants.audit.answer import Answer, answer
from vllm_variants.audit.contents import Expectations
from vllm_variants.audit.drivers import cuda_obstacle, oldest_driver
from vllm_variants.audit.judging import JudgedFeature, State, judge_features, library_fit
from vllm_variants.audit.library import LibraryAudit, jit_bytes, jit_driver
from vllm_variants.model.capability import Capability

WORTH_DROPPING = 0x10000
"""Bytes of a library; strays of the compiler's default target are less."""
_SLIMMABLE = ("environment", "folder", "library")
"""Kinds of what is audited that `slim` takes."""


class Verdict(StrEnum):
    """What an audit comes to, from best to worst; a report has the worst of its findings."""

    PASS = "pass"  # everything that can matter has machine code that runs
    JIT = "jit"  # some containers run only after the driver compiled them
    FOREIGN = "foreign"  # bytes that can never run there take room
    DRIVER = "driver"  # the driver that is there is too old for some of it
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
class About:
    """What was audited, and what it would run on.

    `kind` says what the roots are (`environment`, `result`, …; empty: nobody asked), `driver` is the version
    to judge for (None: not known), `variant` the one of the matrix that serves the device, `published` the
    release of the matrix that is in it; `result`: whether it is one of ours.
    """

    kind: str = ""
    driver: str | None = None
    variant: str | None = None
    published: str | None = None
    result: bool = False


@dataclass(frozen=True)
class AuditReport:
    """Libraries with device code, judged for `capability` (None: only counted, and no verdict).

    `release` is the one they were held to, empty for none; `features` what their code is for, `about` how
    they were found.
    """

    roots: tuple[str, ...]
    capability: Capability | None
    libraries: tuple[LibraryAudit, ...]
    findings: tuple[AuditFinding, ...]
    release: str = ""
    features: tuple[JudgedFeature, ...] = ()
    about: About = About()

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

    @cached_property
    def answer(self) -> Answer | None:
        """Whether it will run there, in a sentence; None without a device."""
        if self.capability is None:
            return None
        unread = sum(bool(library.problem) for library in self.libraries)
        obstacle = cuda_obstacle(self.libraries, self.about.driver)
        return answer(self.capability, self.features, unread, self.missing, obstacle)

    @property
    def driver_needed(self) -> int | None:
        """The oldest driver branch that runs all of it on the device; None: not known, or no device."""
        return oldest_driver(self.libraries, self.features) if self.capability else None

    @property
    def advice(self) -> list[Advice]:
        """What to do about what was found."""
        if self.capability is None:
            return []
        foreign = sum(library.foreign for library in self.libraries)
        about = self.about
        circumstances = Circumstances(
            self.capability, about.variant, about.published, about.result, foreign, about.driver,
            self.driver_needed, self.roots[0] if about.kind in _SLIMMABLE and len(self.roots) == 1 else "",
        )  # fmt: skip
        return advise(self.features, circumstances)

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over all libraries: bytes, seconds of one core, `jit_driver` a driver's branch such as 575."""
        return {
            "libraries": len(self.libraries),
            "size": sum(library.size for library in self.libraries),
            "device": sum(library.device_bytes for library in self.libraries),
            "foreign": sum(library.foreign for library in self.libraries),
            "spare": sum(library.spare for library in self.libraries),
            "jit_containers": len({(lib.path, j.offset) for lib in self.libraries for j in lib.jit}),
            "jit_bytes": jit_bytes(self.libraries),
            "jit_seconds": round(sum(library.jit_seconds for library in self.libraries), 1),
            "jit_driver": jit_driver(self.libraries),
            "stubs": sum(library.stubs for library in self.libraries),
        }

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON; sizes and sums in bytes."""
        return {
            "schema": documents.AUDIT,
            "roots": list(self.roots),
            "kind": self.about.kind or None,
            "capability": str(self.capability) if self.capability else None,
            "release": self.release or None,
            "verdict": str(self.verdict) if self.verdict else None,
            "answer": self.answer.as_dict() if self.answer else None,
            "driver": self.about.driver,
            "driver_needed": self.driver_needed,
            "findings": [finding.as_dict() for finding in self.findings],
            "features": [feature.as_dict() for feature in self.features],
            "advice": [advice.as_dict() for advice in self.advice],
            "totals": self.totals,
            "libraries": [
                {**library.as_dict(), "fit": self._fit(library), "jit_seconds": round(library.jit_seconds, 1)}
                for library in self.libraries
            ],
        }

    def _fit(self, library: LibraryAudit) -> str | None:
        if self.capability is None or library.summary is None or library.problem:
            return None
        return str(library_fit(library.summary, self.capability).fit)


def judge(
    roots: tuple[str, ...],
    libraries: tuple[LibraryAudit, ...],
    capability: Capability | None,
    expectations: Expectations | None,
    about: About = About(),
) -> AuditReport:
    """The report over `libraries`, found below `roots`, with its findings, the worst first.

    `capability` is the device that they are judged for, `expectations` what they should hold, `about` how
    they were found and on which driver. Without the first there is no verdict, without the second nothing
    is missing that is not there.
    """
    features: list[JudgedFeature] = []
    broken = [library for library in libraries if library.problem]
    findings = [AuditFinding(Verdict.MISSING, library.path, library.problem) for library in broken]
    if capability:
        findings += _missing(libraries, capability, expectations)
        summaries = [library.summary for library in libraries if library.summary]
        features = judge_features(summaries, capability, about.driver)
        findings += _driver(features, libraries, about.driver)
        foreign = [library for library in libraries if library.foreign >= WORTH_DROPPING]
        findings += [_foreign(library, capability) for library in foreign]
        findings += [_jit(library) for library in libraries if library.jit]
    release = expectations.release if expectations else ""
    return AuditReport(roots, capability, libraries, tuple(findings), release, tuple(features), about)


def _driver(
    features: list[JudgedFeature], libraries: tuple[LibraryAudit, ...], driver: str | None
) -> list[AuditFinding]:
    old = [feature for feature in features if feature.state is State.DRIVER]
    found = [AuditFinding(Verdict.DRIVER, path, f.reason) for f in old for path in f.use.libraries]
    if obstacle := cuda_obstacle(libraries, driver):
        found.insert(0, AuditFinding(Verdict.DRIVER, "CUDA", obstacle))
    return found


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
            if expectations and (what := contents.missing(expectations, library, name, device)):
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
