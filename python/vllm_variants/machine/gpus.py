"""What GPUs this machine has, as the driver says through NVML.

`machine()` is the one seam: set `VLLM_VARIANTS_MACHINE` to a file made with `detect --json` and
the machine recorded there is used instead, in tests and to follow up somebody's report.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from vllm_variants.errors import InputError
from vllm_variants.model.capability import Capability
from vllm_variants.model.platforms import host_system
from vllm_variants.versions import numbers

T = TypeVar("T")
RECORDED = "VLLM_VARIANTS_MACHINE"
_MIG = "MIG-"

# Where hosts keep the driver's libraries that ldconfig may not list: WSL, containers, NixOS.
_DRIVER_FOLDERS = (
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/run/opengl-driver/lib",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU; `memory` in bytes, None where the driver does not say (unified memory).

    `mig` are the ids of the MIG instances that it is divided into, in the driver's order.
    """

    index: int
    name: str
    capability: Capability
    memory: int | None
    uuid: str
    mig: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The GPU as JSON: its capability as `9.0`, `mig` only where there is any."""
        facts = {**asdict(self), "capability": str(self.capability), "mig": list(self.mig)}
        return facts if self.mig else {key: value for key, value in facts.items() if key != "mig"}

    @property
    def device(self) -> str:
        """Its name for CUDA_VISIBLE_DEVICES: its index, or the id of the MIG instance that was chosen.

        vLLM (0.11.2, 0.13.0) takes indices alone: `platforms/interface.py` there reads each as an int.
        """
        return self.uuid if self.uuid.startswith(_MIG) else str(self.index)


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

    def driver_for(self, device: Capability | None) -> str | None:
        """The driver, where a GPU of this capability is here; None: what else would run it is not known."""
        return self.driver if any(gpu.capability == device for gpu in self.gpus) else None

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
                tuple(map(str, _of(list, gpu, "mig"))) if "mig" in gpu else (),
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

    Names are indices in the driver's order (CUDA_DEVICE_ORDER=PCI_BUS_ID, which is how vLLM reads them),
    beginnings of ids (`GPU-1a2b`), or ids of MIG instances, of which a process uses one (NVIDIA's MIG user
    guide): the GPU that has it then bears its id. As in CUDA, the first name decides which of these all are,
    what follows one that is not known is not seen, and a device named twice leaves none (CUDA C++
    programming guide, "CUDA environment variables"; torch/cuda/__init__.py reads them so too).
    """
    if chosen is None:
        return tuple(gpus)
    names = [name.strip() for name in chosen.split(",")]
    listed: list[Gpu] = []
    for name in names:
        gpu = _named(gpus, name, next((kind for kind in ("GPU-", _MIG) if names[0].startswith(kind)), ""))
        if gpu is None:
            break
        if gpu in listed:
            return ()
        listed.append(gpu)
    return tuple(listed[:1] if names[0].startswith(_MIG) else listed)


def _named(gpus: Sequence[Gpu], name: str, kind: str) -> Gpu | None:
    """The one GPU that a name of this kind (`GPU-`, `MIG-`; an index without) means, or None."""
    if not kind:
        # CUDA reads a number as C's strtoul does: `1x` is 1, and what begins with no digit is none.
        number = re.match(r"[+]?(\d+)", name)
        matches = [gpu for gpu in gpus if number and gpu.index == int(number[1])]
    elif not name.startswith(kind):
        return None
    elif kind == _MIG:
        matches = [replace(gpu, uuid=mig) for gpu in gpus for mig in gpu.mig if mig == name]
    else:
        matches = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
    return matches[0] if len(matches) == 1 else None


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
        tuple(_mig_ids(handle)),
    )


def _mig_ids(handle: Any) -> Iterator[str]:
    """The ids of a GPU's MIG instances; none where it has no such thing, or it is off."""
    import pynvml

    with suppress(pynvml.NVMLError):
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with suppress(pynvml.NVMLError):  # as many as there could be, not as there are
                instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                yield str(pynvml.nvmlDeviceGetUUID(instance))
