"""What GPUs this machine has, as the driver says through NVML.

`machine()` is the one seam: set `VLLM_VARIANTS_MACHINE` to a file made with `detect --json` and
the machine recorded there is used instead, in tests and to follow up somebody's report.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from vllm_variants.errors import InputError
from vllm_variants.model.capability import Capability
from vllm_variants.model.platforms import host_system
from vllm_variants.versions import numbers

T = TypeVar("T")
RECORDED = "VLLM_VARIANTS_MACHINE"

# Where hosts keep the driver's libraries that ldconfig may not list: WSL, containers, NixOS.
_DRIVER_FOLDERS = (
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/run/opengl-driver/lib",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU; `memory` in bytes, None where the driver does not say (unified memory)."""

    index: int
    name: str
    capability: Capability
    memory: int | None
    uuid: str

    def as_dict(self) -> dict[str, object]:
        """The GPU as JSON: its capability as `9.0`."""
        return {**asdict(self), "capability": str(self.capability)}


@dataclass(frozen=True)
class Machine:
    """A host: its system, its driver's version (None without one), its GPUs in the driver's order.

    `problem` says in a sentence why no GPU could be listed, where that is so.
    """

    system: str
    driver: str | None
    gpus: tuple[Gpu, ...]
    problem: str | None = None

    def older_than(self, driver: str) -> bool:
        """Whether the driver is known and older than `driver` (`560`, `575.51.03`)."""
        return self.driver is not None and numbers(self.driver) < numbers(driver)

    def as_dict(self) -> dict[str, object]:
        """The machine as JSON; `from_dict` reads it back."""
        return {
            "system": self.system,
            "driver": self.driver,
            "gpus": [gpu.as_dict() for gpu in self.gpus],
            "problem": self.problem,
        }

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Self:
        """Read what `as_dict` wrote; `KeyError`, `TypeError` or `ValueError` on anything else."""
        gpus = tuple(
            Gpu(
                _of(int, gpu, "index"),
                _of(str, gpu, "name"),
                Capability.parse(_of(str, gpu, "capability")),
                None if gpu["memory"] is None else _of(int, gpu, "memory"),
                _of(str, gpu, "uuid"),
            )
            for gpu in _of(list, facts, "gpus")
        )
        driver = None if facts["driver"] is None else _of(str, facts, "driver")
        problem = None if facts.get("problem") is None else _of(str, facts, "problem")
        return cls(_of(str, facts, "system"), driver, gpus, problem)


def _of(kind: type[T], facts: Mapping[str, Any], key: str) -> T:
    """A fact of the type it must have; `true` is no number."""
    value = facts[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{key} is {value!r}, not {kind.__name__}")
    return value


def visible(gpus: Sequence[Gpu], chosen: str | None) -> tuple[Gpu, ...]:
    """Those of `gpus` that `chosen`, a value of CUDA_VISIBLE_DEVICES, leaves, in its order; None: all.

    Names are indices in the driver's order (CUDA_DEVICE_ORDER=PCI_BUS_ID, which is how vLLM reads
    them) or beginnings of ids (`GPU-1a2b`). As in CUDA, what follows an unknown one is not seen.
    """
    if chosen is None:
        return tuple(gpus)
    listed: list[Gpu] = []
    for name in map(str.strip, chosen.split(",")):
        matches = [gpu for gpu in gpus if _is_named(gpu, name)]
        if len(matches) != 1 or matches[0] in listed:
            break
        listed += matches
    return tuple(listed)


def _is_named(gpu: Gpu, name: str) -> bool:
    return str(gpu.index) == name or (name.startswith("GPU-") and gpu.uuid.startswith(name))


def machine() -> Machine:
    """This machine, or the recorded one that `VLLM_VARIANTS_MACHINE` names.

    Raises `InputError` when the recorded file is none. A machine without a driver is no error: see `problem`.
    """
    recorded = os.environ.get(RECORDED)
    return _replay(Path(recorded)) if recorded else _query_driver()


def _replay(path: Path) -> Machine:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Machine.from_dict(facts.get("machine", facts))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{RECORDED} names {path}, which is no recorded machine ({error})",
            hint=f"record one with `vllm-variants detect --json > {path.name}`, or unset {RECORDED}",
        ) from error


def _query_driver() -> Machine:
    import pynvml

    system = host_system()
    _preload_nvml()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Machine(system, None, (), _no_driver(error.value))
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        gpus = tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:
        return Machine(system, None, (), f"the NVIDIA driver does not answer: {error}")
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return Machine(system, driver, gpus, None if gpus else "the driver is there, but it sees no GPU")


def _preload_nvml() -> None:
    """Load NVML from where ldconfig may not look, so that the binding finds it by its soname."""
    for folder in _DRIVER_FOLDERS:
        library = Path(folder, "libnvidia-ml.so.1")
        if library.exists():
            with suppress(OSError):
                ctypes.CDLL(str(library))
                return


def _no_driver(code: int) -> str:
    import pynvml

    if code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "no NVIDIA driver is installed (libnvidia-ml.so.1 was not found)"
    if code == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return (
            "the NVIDIA driver is installed but its kernel module is not loaded (try `sudo modprobe nvidia`)"
        )
    if code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver was updated under the running kernel module: reboot"
    return f"the NVIDIA driver does not answer: {pynvml.NVMLError(code)}"


def _gpu(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory: int | None = None
    with suppress(pynvml.NVMLError):
        memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index,
        str(pynvml.nvmlDeviceGetName(handle)),
        Capability(int(major), int(minor)),
        memory,
        str(pynvml.nvmlDeviceGetUUID(handle)),
    )
