"""Hold a library to what the published one holds for an SM (`model/expectations.py`)."""

from __future__ import annotations

from vllm_variants.audit.library import LibraryAudit
from vllm_variants.model.capability import Capability, Fit
from vllm_variants.model.expectations import Expectations as Expectations
from vllm_variants.model.expectations import load as load
from vllm_variants.model.expectations import read as read


def missing(expectations: Expectations, library: LibraryAudit | None, name: str, device: Capability) -> str:
    """What is wrong with a library's code for `device`, in a few words; empty: nothing.

    A library with as many containers as the published wheel's must have as many with usable
    code. One compiled for this SM alone has other containers: some must be usable.
    """
    expected = expectations.libraries[name].by_sm.get(device.sm)
    if expected is None or not expected.usable:
        return ""
    if library is None:
        return "is not there"
    if library.problem:
        return "cannot be read"
    usable = library.runs + library.fits[Fit.JIT]
    if library.containers == expectations.libraries[name].containers:
        lost = expected.usable - usable
        if lost > 0:
            return f"{lost} of {expected.usable} containers have nothing for {device.sm}"
        if library.runs < expected.machine_code:
            return f"{expected.machine_code - library.runs} containers lost their machine code"
        return ""
    return "" if usable else f"nothing in it runs on {device.sm}"
