"""How a library as a whole serves a device: one word of what its containers say one by one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from vllm_variants.model.capability import Fit


class Serves(StrEnum):
    """What a library comes to on a device, for a colour and a word."""

    NATIVE = "native"  # machine code for exactly this device
    SAME_MAJOR = "same-major"  # machine code for an earlier minor, or for its family
    FAMILY = "family"
    JIT = "jit"  # some of it is only there as PTX
    NONE = "none"  # device code, and none of it runs here
    BROKEN = "broken"  # it could not be read
    UNJUDGED = "unjudged"  # device code, and no device to judge it for
    NO_CODE = "no-code"  # no device code at all


def serves(library: Mapping[str, Any]) -> Serves:
    """The word for one library of an audit document.

    `jit` comes first: one container that waits is a wait. Containers that have nothing for the device say
    nothing against a library, which holds kernels of other architectures too, unless all are so.
    """
    if library["problem"]:
        return Serves.BROKEN
    return of_fits(library["fits"], library["containers"])


def of_fits(fits: Mapping[str, int], containers: int) -> Serves:
    """The same of containers counted by fit; `containers` are all of the library's."""
    if fits.get(Fit.JIT):
        return Serves.JIT
    machine_code = {fit: fits.get(fit, 0) for fit in (Fit.NATIVE, Fit.SAME_MAJOR, Fit.FAMILY)}
    if any(machine_code.values()):
        return Serves(str(max(machine_code, key=lambda fit: machine_code[fit])))
    if fits.get(Fit.NONE):
        return Serves.NONE
    return Serves.UNJUDGED if containers else Serves.NO_CODE
