"""What to do about what an audit found: another release or variant, code compiled ahead, a newer driver."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_variants.audit.judging import JudgedFeature, State, too_old
from vllm_variants.model.capability import Capability
from vllm_variants.system.text import size


@dataclass(frozen=True)
class Advice:
    """One thing to do: a sentence, the command that does it (None: no one command does), for what."""

    what: str
    command: str | None
    features: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The advice as JSON."""
        return {"what": self.what, "command": self.command, "features": list(self.features)}


@dataclass(frozen=True)
class Circumstances:
    """What advice depends on besides the features.

    `variant` is the variant of the matrix that serves the device (None: no one does), `release` the release
    of vLLM that is in it where one is known to the matrix, `result`: whether it is a result of ours already,
    `foreign` bytes that can never run, `driver_needed` the branch that runs all of it. `path` is what `slim`
    can be given, empty where it cannot (an image, a lock).
    """

    device: Capability
    variant: str | None
    release: str | None
    result: bool
    foreign: int
    driver: str | None
    driver_needed: int | None
    path: str = ""


_WORTH = 100_000_000
"""Bytes that can never run from which on it is worth saying what frees them."""


def advise(features: Sequence[JudgedFeature], about: Circumstances) -> list[Advice]:
    """What to do, the most pressing first; nothing where everything runs and little is foreign."""
    return [*_missing(features, about), *_driver(features, about), *_waits(features, about), *_foreign(about)]


def _keys(features: Sequence[JudgedFeature]) -> tuple[str, ...]:
    return tuple(f.use.feature.key for f in features)


def _build(about: Circumstances, *options: str) -> str | None:
    if not about.variant:
        return None
    release = ["--release", about.release] if about.release else []
    return " ".join(["vllm-variants build", about.variant, *release, *options])


def _missing(features: Sequence[JudgedFeature], about: Circumstances) -> Iterator[Advice]:
    missing = [f for f in features if f.state is State.MISSING]
    if not missing:
        return
    names = ", ".join(f.name for f in missing)
    if about.result and about.variant:
        yield Advice(
            f"this result is for another card: build the variant for {about.device.sm}", _build(about),
            _keys(missing),
        )  # fmt: skip
    else:
        yield Advice(
            f"install releases of {names} that are published for {about.device.sm}: older ones for cards that"
            " were dropped, newer ones for cards that came later",
            "vllm-variants list" if about.variant else None,
            _keys(missing),
        )


def _driver(features: Sequence[JudgedFeature], about: Circumstances) -> Iterator[Advice]:
    old = [f for f in features if f.state is State.DRIVER]
    if old or too_old(about.driver, about.driver_needed):
        yield Advice(
            f"install NVIDIA driver {about.driver_needed or max(f.counts.driver or 0 for f in old)} or newer"
            f" (here is {about.driver})", None, _keys(old),
        )  # fmt: skip
        compiled = [f for f in old if f.counts.jit_driver == f.counts.driver and _vllm(f)]
        if compiled and (command := _build(about, "--native")):
            yield Advice(
                "or compile that PTX ahead, which asks nothing of the driver", command, _keys(compiled)
            )


def _vllm(feature: JudgedFeature) -> bool:
    return any("vllm/" in path for path in feature.use.libraries)


def _waits(features: Sequence[JudgedFeature], about: Circumstances) -> Iterator[Advice]:
    waiting = [f for f in features if f.state is State.WAITS]
    if not waiting:
        return
    command, ours = _build(about, "--native"), [f for f in waiting if _vllm(f)]
    if command and ours:
        yield Advice("compile it once, ahead, instead of at every first call", command, _keys(ours))
    either = "or " if command and ours else ""
    yield Advice(
        f"{either}keep the driver's cache between starts: CUDA_CACHE_PATH on a disk that stays,"
        " CUDA_CACHE_MAXSIZE of 4 GiB",
        "export CUDA_CACHE_PATH=… CUDA_CACHE_MAXSIZE=4294967296",
        _keys(waiting),
    )


def _foreign(about: Circumstances) -> Iterator[Advice]:
    if about.foreign < _WORTH or about.result:
        return
    command = _build(about) if about.release else None
    if command is None and about.path:
        command = shlex.join(["vllm-variants", "slim", about.path, "--sm", about.device.sm, "-o", "COPY"])
    yield Advice(f"{size(about.foreign)} can never run on {about.device.sm}: slimming drops them", command)
