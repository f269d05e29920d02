"""The matrix of libraries and features by SM: how each fares on every device that the project knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_variants import documents
from vllm_variants.audit.answer import Answer, answer
from vllm_variants.audit.drivers import cuda_obstacle
from vllm_variants.audit.judging import FitCounts, JudgedFeature, features_in, judge_features, library_fit
from vllm_variants.audit.library import LibraryAudit, judged
from vllm_variants.audit.report import About
from vllm_variants.audit.summary import LibrarySummary
from vllm_variants.model.capability import Capability


@dataclass(frozen=True)
class SmMatrix:
    """Libraries judged for several devices; `release` is the vLLM in them, empty for none that is known."""

    roots: tuple[str, ...]
    devices: tuple[Capability, ...]
    libraries: tuple[LibrarySummary, ...]
    release: str = ""
    about: About = field(default_factory=About)

    def audits(self, library: LibrarySummary) -> dict[str, LibraryAudit]:
        """A library's audit by SM."""
        return {device.sm: judged(library, device) for device in self.devices}

    def features(self) -> dict[str, dict[str, JudgedFeature]]:
        """Every feature's fate by its key, then by SM; one whose code was slimmed away may lack an SM."""
        by_key: dict[str, dict[str, JudgedFeature]] = {
            use.feature.key: {} for use in features_in(self.libraries)
        }
        for device in self.devices:
            for feature in judge_features(self.libraries, device, self.about.driver):
                by_key[feature.use.feature.key][device.sm] = feature
        return {key: fates for key, fates in by_key.items() if fates}

    def answers(self) -> dict[str, Answer]:
        """Whether it will run, by SM."""
        unread = sum(bool(library.problem) for library in self.libraries)
        driver = self.about.driver
        obstacle = cuda_obstacle(self.libraries, driver)
        return {
            device.sm: answer(device, judge_features(self.libraries, device, driver), unread, "", obstacle)
            for device in self.devices
        }

    def as_dict(self) -> dict[str, Any]:
        """The matrix as JSON; sizes in bytes, seconds of one core."""
        return {
            "schema": documents.AUDIT_MATRIX,
            "roots": list(self.roots),
            "kind": self.about.kind or None,
            "release": self.release or None,
            "driver": self.about.driver,
            "sms": [device.sm for device in self.devices],
            "answers": {sm: given.as_dict() for sm, given in self.answers().items()},
            "libraries": [self._library(library) for library in self.libraries],
            "features": [_feature(fates) for fates in self.features().values()],
        }

    def _library(self, library: LibrarySummary) -> dict[str, Any]:
        audits = self.audits(library)
        any_audit = judged(library)
        return {
            "path": library.path,
            "size": library.size,
            "device": any_audit.device_bytes,
            "problem": library.problem,
            "fits": {
                device.sm: {
                    **library_fit(library, device).as_dict(), "foreign": audits[device.sm].foreign,
                }
                for device in self.devices
                if not library.problem
            },
        }  # fmt: skip


def cells(library: LibrarySummary, devices: Sequence[Capability]) -> list[FitCounts]:
    """A row of the matrix for people."""
    return [library_fit(library, device) for device in devices]


def _feature(fates: dict[str, JudgedFeature]) -> dict[str, Any]:
    feature = next(iter(fates.values())).use.feature
    return {
        "feature": feature.key,
        "name": feature.name,
        "says": feature.says,
        "needed": feature.needed,
        "checks": list(feature.checks),
        "libraries": next(iter(fates.values())).use.libraries,
        "fits": {
            sm: {"state": str(fate.state), "reason": fate.reason, **fate.counts.as_dict()}
            for sm, fate in fates.items()
        },
    }
