"""How features and libraries fare on a device: what runs, what waits for the driver, what never runs.

Of the containers of one feature, or of one library, those that have nothing for a device are normal as long
as others run: kernels for other architectures. So the fit of the whole is `none` where nothing runs, `jit`
where some container waits, else the weakest of the machine code that runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vllm_variants.audit import features as claimed
from vllm_variants.audit.features import Feature
from vllm_variants.audit.fitting import fitting, images_of, is_stray, kinds_of
from vllm_variants.audit.offers import offered
from vllm_variants.audit.summary import HeldContainer, LibrarySummary, ScatteredGroup
from vllm_variants.fatbin.codecs import ZSTD_DRIVER
from vllm_variants.fatbin.container import Image
from vllm_variants.fatbin.native import schedule
from vllm_variants.model import toolkits
from vllm_variants.model.capability import Capability, Fit, Kind
from vllm_variants.versions import numbers


class State(StrEnum):
    """How a feature fares on a device, from best to worst."""

    RUNS = "runs"  # machine code, from the first call on
    WAITS = "waits"  # some of it is compiled by the driver at its first call
    UNSUPPORTED = "unsupported"  # not made for this device by those who publish it
    DRIVER = "driver"  # the driver that is there is too old for it
    MISSING = "missing"  # nothing of it runs, and it should


@dataclass
class FitCounts:
    """Containers by how they fit one device; seconds and bytes of what the driver compiles.

    `jit_ptx` is the newest PTX language among it; `zstd`: some image that runs is stored so; `stubs` counts
    containers whose code was dropped by slimming, which are not among the others. `timed`: it is known of all
    that is compiled how long that takes.
    """

    containers: Counter[Fit] = field(default_factory=Counter)
    jit_bytes: int = 0
    jit_seconds: float = 0.0
    jit_ptx: tuple[int, int] | None = None
    zstd: bool = False
    stubs: int = 0
    timed: bool = True

    def add(self, held: HeldContainer, device: Capability) -> None:
        """Count one more container."""
        if held.stubs and not any(image.kind for image in held.images):
            self.stubs += 1
            return
        found = held.fitting(device)
        self.containers[found.fit] += 1
        for n in found.chosen:
            self._add_chosen(held.container.images[n])

    def add_scattered(self, group: ScatteredGroup, device: Capability) -> None:
        """Count containers that lie among other data; how long their PTX takes is not known."""
        if any(image.kind for image in images_of(group.kinds)):
            fit = fitting(group.kinds, frozenset(), device).fit
            self.containers[fit] += group.containers
            self.timed = self.timed and fit is not Fit.JIT
        else:
            self.stubs += group.containers

    def _add_chosen(self, image: Image) -> None:
        self.zstd = self.zstd or image.compression == "zstd"
        if image.kind is Kind.PTX:
            self.jit_bytes += image.original_size
            self.jit_seconds += schedule.cpu_seconds(image.original_size)
            self.jit_ptx = max(self.jit_ptx or (0, 0), image.version)

    @property
    def total(self) -> int:
        """All containers but stubs."""
        return sum(self.containers.values())

    @property
    def fit(self) -> Fit:
        """Of all together (see the module)."""
        if self.containers[Fit.JIT]:
            return Fit.JIT
        return max((f for f in Fit if f and self.containers[f]), key=list(Fit).index, default=Fit.NONE)

    @property
    def jit_driver(self) -> int | None:
        """The oldest driver branch (575) that compiles all of it; None: nothing to compile, or not known."""
        return toolkits.driver(self.jit_ptx) if self.jit_ptx else None

    @property
    def driver(self) -> int | None:
        """The oldest driver branch that runs all of it, as far as PTX and compression decide; None: any."""
        needed = [self.jit_driver or 0, ZSTD_DRIVER if self.zstd else 0]
        return max(needed) or None

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON; seconds are of one core, and an estimate."""
        return {
            "fit": str(self.fit),
            "containers": {str(f): self.containers[f] for f in Fit if self.containers[f]},
            "stubs": self.stubs,
            "jit_bytes": self.jit_bytes,
            "jit_seconds": round(self.jit_seconds, 1),
            "jit_driver": self.jit_driver,
            "driver": self.driver,
        }


def counted(containers: Sequence[HeldContainer], device: Capability) -> FitCounts:
    """How containers fare on a device; strays among others do not count (see `library.py`)."""
    meant = [held for held in containers if not _is_stray(held)] or containers
    counts = FitCounts()
    for held in meant:
        counts.add(held, device)
    return counts


def _is_stray(held: HeldContainer) -> bool:
    return is_stray(kinds_of(held.images))


def library_fit(library: LibrarySummary, device: Capability) -> FitCounts:
    """How one library fares on a device."""
    return _together(library.containers, library.scattered, device)


def _together(
    held: Sequence[HeldContainer], scattered: Iterable[ScatteredGroup], device: Capability
) -> FitCounts:
    """Containers in their own sections; where those hold only strays, what lies among other data."""
    if all(_is_stray(each) for each in held):
        counts = FitCounts()
        for group in scattered:
            counts.add_scattered(group, device)
        if counts.total or counts.stubs:
            return counts
    return counted(held, device)


@dataclass(frozen=True)
class FeatureUse:
    """A feature and the containers that belong to it, by library; `scattered` are those among other data."""

    feature: Feature
    held: tuple[tuple[str, tuple[HeldContainer, ...]], ...]
    scattered: tuple[ScatteredGroup, ...] = ()

    @property
    def libraries(self) -> list[str]:
        """The paths of its libraries."""
        return [path for path, _ in self.held]


def features_in(libraries: Iterable[LibrarySummary]) -> list[FeatureUse]:
    """The features whose code is in libraries, in the order of `features.toml`, then packages by name."""
    by_feature: dict[str, tuple[Feature, dict[str, list[HeldContainer]]]] = {}
    by_key = {feature.key: feature for feature in claimed.known()}
    scattered: dict[str, list[ScatteredGroup]] = {}
    for library in libraries:
        own = claimed.of_library(library.path)
        scattered.setdefault(own.key, []).extend(library.scattered)
        if library.scattered and not library.containers:
            by_feature.setdefault(own.key, (own, {}))[1].setdefault(library.path, [])
        for held in library.containers:
            for feature in [by_key[key] for key in held.features if key in by_key] or [own]:
                places = by_feature.setdefault(feature.key, (feature, {}))[1]
                places.setdefault(library.path, []).append(held)
    order = {key: n for n, key in enumerate(by_key)}
    return [
        FeatureUse(
            feature,
            tuple((path, tuple(held)) for path, held in sorted(places.items())),
            tuple(scattered.get(key, ())),
        )
        for key, (feature, places) in sorted(
            by_feature.items(), key=lambda item: (order.get(item[0], len(order)), item[0])
        )
    ]


@dataclass(frozen=True)
class JudgedFeature:
    """How a feature fares on a device; `reason` says why in a clause, empty where it simply runs."""

    use: FeatureUse
    counts: FitCounts
    state: State
    reason: str = ""

    @property
    def name(self) -> str:
        """As people call it."""
        return self.use.feature.name

    def as_dict(self) -> dict[str, Any]:
        """The feature as JSON."""
        feature = self.use.feature
        return {
            "feature": feature.key,
            "name": feature.name,
            "says": feature.says,
            "state": str(self.state),
            "reason": self.reason,
            "needed": feature.needed,
            "checks": list(feature.checks),
            "libraries": self.use.libraries,
            **self.counts.as_dict(),
        }


def judge_features(
    libraries: Sequence[LibrarySummary], device: Capability, driver: str | None = None
) -> list[JudgedFeature]:
    """Every feature in libraries, judged for a device and, where it is known, the driver that is there."""
    return list(_judged(features_in(libraries), device, driver))


def _judged(uses: Iterable[FeatureUse], device: Capability, driver: str | None) -> Iterator[JudgedFeature]:
    for use in uses:
        counts = _counts(use, device)
        if counts.total or not counts.stubs or use.feature.needed:
            yield JudgedFeature(use, counts, *_state(use.feature, counts, device, driver))


def _counts(use: FeatureUse, device: Capability) -> FitCounts:
    """Of all its libraries together, or of the best where they stand for each other."""
    if use.feature.anyone:
        each = [counted(held, device) for _, held in use.held]
        return min(each, key=lambda counts: (list(Fit).index(counts.fit), counts.jit_seconds))
    return _together([container for _, held in use.held for container in held], use.scattered, device)


def _state(feature: Feature, counts: FitCounts, device: Capability, driver: str | None) -> tuple[State, str]:
    if not feature.needed and (counts.fit is Fit.NONE or offered(feature.checks, device) is False):
        return State.UNSUPPORTED, f"not made for {device.sm}"
    if counts.fit is Fit.NONE:
        return State.MISSING, f"nothing in it runs on {device.sm}"
    if too_old(driver, counts.driver):
        why = "to compile its PTX" if counts.jit_driver == counts.driver else "to read how its code is stored"
        return State.DRIVER, f"driver {counts.driver} or newer is needed {why}; here is {driver}"
    if counts.fit is Fit.JIT:
        return State.WAITS, f"PTX only in {counts.containers[Fit.JIT]} of {counts.total} containers"
    return State.RUNS, ""


def too_old(driver: str | None, needed: int | None) -> bool:
    """Whether a driver (`570.86`) is known to be older than the branch that is needed."""
    return bool(driver and needed and () < numbers(driver)[:1] < (needed,))
