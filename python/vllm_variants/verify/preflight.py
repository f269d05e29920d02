"""Before any check runs: is this a result, and does this machine have the GPU that it is for?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_variants.errors import InputError, MissingError, UnsupportedError
from vllm_variants.machine.gpus import Gpu, Machine, visible
from vllm_variants.model import results
from vllm_variants.model.capability import Capability
from vllm_variants.model.results import Result
from vllm_variants.verify.check_process import CheckedResult

DETECT = "vllm-variants detect"


def result(path: Path, *, variant: str | None = None) -> Result:
    """The result at `path`; raise when there is none, or when it is not of `variant` ("sm90").

    `MissingError`, `InputError`: no result there, one without an interpreter, or another variant.
    """
    try:
        result = results.read(path, variant=variant)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    short = result.manifest.short
    if variant and short != variant:
        raise InputError(
            f"{path} is a result for {short}, not for {variant}",
            hint=f"vllm-variants verify {short} --result {path}",
        )
    if not result.python.exists():
        raise MissingError(
            f"{path} has no interpreter at {result.python}",
            hint=f"build it again: vllm-variants build {short}",
        )
    return result


def fitting(result: Result, machine: Machine) -> tuple[Gpu, ...]:
    """The GPUs of this machine that the result is built for; raise `UnsupportedError` without any.

    Where CUDA_VISIBLE_DEVICES is set, only those that it names are looked at. Only the result's own
    capability counts: what another one can run of it is not known.
    """
    manifest = result.manifest
    if manifest.system != machine.system:
        raise UnsupportedError(f"{manifest.short} is for {manifest.system} and this host is {machine.system}")
    if not machine.gpus:
        raise UnsupportedError(
            f"there is no GPU to check {manifest.short} on: {machine.problem or 'the driver sees none'}",
            hint=f"run this on a machine with a GPU of compute capability {manifest.capability}",
        )
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    usable = visible(machine.gpus, chosen)
    if not usable:
        raise UnsupportedError(
            f"CUDA_VISIBLE_DEVICES={chosen} leaves no GPU of this machine to use",
            hint=f"unset it, or name GPUs by their index: {machine.gpus[0].index}",
        )
    gpus = tuple(gpu for gpu in usable if gpu.capability == manifest.capability)
    if not gpus:
        have = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in usable)
        raise UnsupportedError(
            f"{manifest.short} is built for compute capability {manifest.capability},"
            f" and this machine has {have}",
            hint=_hidden(manifest.capability, machine, chosen) or f"{DETECT} names the variant for it",
        )
    _require_driver(result, machine)
    return gpus


def _hidden(capability: Capability, machine: Machine, chosen: str | None) -> str | None:
    """What to do where CUDA_VISIBLE_DEVICES leaves out a GPU that would fit; None where none does."""
    fits = [gpu for gpu in machine.gpus if gpu.capability == capability]
    if not fits:
        return None
    return f"CUDA_VISIBLE_DEVICES={chosen} hides one that fits: GPU {fits[0].index}, {fits[0].name}"


def _require_driver(result: Result, machine: Machine) -> None:
    """Raise `UnsupportedError` where the driver is older than the release's stack needs."""
    oldest = str(result.manifest.facts.get("stack", {}).get("driver", ""))
    if oldest and machine.older_than(oldest):
        raise UnsupportedError(
            f"the NVIDIA driver is {machine.driver}, and {result.manifest.short} needs {oldest} or newer",
            hint="update the driver; its kernel module and libraries come from the host",
        )


def reservation(result: Result, machine: Machine) -> str | None:
    """What this machine's driver cannot do for the result, as a sentence; None where nothing is known.

    A driver new enough to run the result may be too old to compile the PTX in it (`model/toolkits.py`).
    """
    sums = result.manifest.audited
    oldest = sums.get("jit_driver")
    if not oldest or not machine.older_than(str(oldest)):
        return None
    containers = f"{sums.get('jit_containers')} containers of {result.manifest.short}"
    return (
        f"the NVIDIA driver is {machine.driver}, and {containers} have only PTX for this GPU, which it takes"
        f" {oldest} to compile: what needs them will fail"
    )


def facts(result: Result) -> dict[str, Any]:
    """What the result says about itself, by the names of `checks/imports.py`."""
    manifest = result.manifest
    stack = manifest.facts.get("stack", {})
    return {
        "vllm": manifest.release,
        "capability": str(manifest.capability),
        **{name: str(stack[name]) for name in ("torch", "cuda", "python", "driver") if name in stack},
        "vllm_program": str(result.path / "bin" / "vllm"),
        "inside": [str(result.path)] if manifest.builder == "wheels" else ["/nix/store"],
    }


def checked_result(result: Result, gpus: Sequence[Gpu], *, native: bool = False) -> CheckedResult:
    """What `running.run` needs: the interpreter, the facts, and these GPUs, the first one first."""
    return CheckedResult(result.python, facts(result), devices(gpus), native)


def devices(gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """The GPUs' names for CUDA_VISIBLE_DEVICES."""
    return tuple(gpu.device for gpu in gpus)
