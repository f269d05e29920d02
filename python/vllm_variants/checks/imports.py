"""Is this the result it says it is: versions, libraries, device, driver.

Facts (all optional; `run.py --facts`): `vllm`, `torch`, `cuda`, `python` versions, `capability`
("9.0"), `driver` (the oldest branch, "560"), `inside` (folders that the libraries must come from),
`vllm_program` (the command that a person starts).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from .checking import Run, Wrong, check

# The driver's own libraries are the host's, on purpose: they must match its kernel module.
DRIVER = re.compile(r"^(libcuda\.so|libnvidia-|libcudadebugger|libnvcuvid|libnvoptix)")
GPU_LIBRARY = re.compile(
    r"^(libcu|libnv|libnccl|libtorch|libc10|libcaffe2|_C[._]|_moe_C[._]|_vllm_fa|_flashmla|cumem_allocator"
    r"|_flashkda|_qutlass|_deepselect)"
)


def _same(version: str, stated: str) -> bool:
    """Whether a version is the stated one or a patch of it: 2.9.1+cu128 is 2.9.1."""
    public = version.split("+")[0]
    return public == stated or public.startswith(stated + ".")


def _mapped() -> list[str]:
    """Paths of the shared libraries that this process has mapped."""
    with Path("/proc/self/maps").open() as maps:
        lines = [line.split(maxsplit=5) for line in maps]
    return sorted({line[5].strip() for line in lines if len(line) == 6 and ".so" in line[5]})


@check("import.versions")
def versions(run: Run) -> None:
    """vLLM, torch, Python and the CUDA runtime are of the versions that the result states."""
    import vllm

    installed = {"vllm": vllm.__version__, "torch": torch.__version__, "python": platform.python_version()}
    number = ctypes.c_int()
    major = str(torch.version.cuda).partition(".")[0]
    ctypes.CDLL(f"libcudart.so.{major}").cudaRuntimeGetVersion(ctypes.byref(number))
    installed["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    run.fact(**installed, torch_built_for_cuda=torch.version.cuda)
    for name, version in installed.items():
        stated = run.facts.get(name)
        if stated and not _same(version, stated):
            raise Wrong(f"{name} is {version}, and the result says {stated}")


_STABLE = "_stable_libtorch"  # vLLM's libraries for torch's stable interface; their namespaces are without it


def _plain(name: str) -> str:
    """A name without what vLLM spells differently in a library's name and in its namespace."""
    return name.removesuffix(_STABLE).removesuffix("_C").replace("_", "") or "C"


def _namespaces(module: str) -> set[str]:
    """The operator namespaces that a library may have registered: its own name, and its folder's."""
    parts = module.split(".")
    names = parts[-2:] if parts[-1] == "_C_extension" else parts[-1:]
    return {_plain(name) for name in names}


@check("import.extensions")
def extensions(run: Run) -> None:
    """Every extension library of vLLM loads, and leaves operators or functions behind."""
    import vllm

    folder = Path(vllm.__file__).parent
    counts, schemas = {}, torch._C._jit_get_all_schemas
    for path in sorted(folder.rglob("*.so")):
        name = ".".join(path.relative_to(folder.parent).parts).split(".abi3")[0].removesuffix(".so")
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise Wrong(f"{name} does not load: {error}") from error
        own = _namespaces(name)
        operators = sum(_plain(schema.name.partition("::")[0]) in own for schema in schemas())
        functions = sum(not attribute.startswith("__") for attribute in vars(module))
        if not operators and not functions:
            raise Wrong(f"{name} loads but registers nothing")
        counts[name] = operators or functions
    for needed in ("vllm._C", "vllm._moe_C"):
        if needed not in counts and needed + _STABLE not in counts:
            raise Wrong(f"{needed} is missing")
    run.fact(operators=counts)


@check("import.platform")
def vllm_platform(run: Run) -> None:
    """vLLM recognises the card by the installed packages and NVML; half of vLLM hangs on the answer."""
    import vllm
    from vllm.platforms import current_platform

    metadata: str | None
    try:
        metadata = importlib.metadata.version("vllm")
    except (importlib.metadata.PackageNotFoundError, KeyError):
        metadata = None
    run.fact(distribution=metadata, vllm=vllm.__version__, platform=type(current_platform).__name__)
    if not metadata or metadata.split("+")[0] != vllm.__version__.split("+")[0]:
        raise Wrong(
            f"vLLM is {vllm.__version__}, and its installed metadata says {metadata}:"
            " there is a foreign or an empty vllm-*.dist-info folder beside its own"
        )
    if not current_platform.is_cuda():
        name = type(current_platform).__name__
        raise Wrong(f"vLLM does not recognise the card: its platform is {name}, not CUDA")
    seen = current_platform.get_device_capability()
    if tuple(seen) != torch.cuda.get_device_capability():
        raise Wrong(f"vLLM sees capability {seen}, and torch {torch.cuda.get_device_capability()}")


@check("import.device")
def device(run: Run) -> None:
    """The card has the stated capability, its driver is new enough, and it can add."""
    if not torch.cuda.is_available():
        raise Wrong("torch finds no CUDA device: torch.cuda.is_available() is False")
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    driver = _driver()
    properties = torch.cuda.get_device_properties(0)
    run.fact(
        capability=capability,
        driver=driver,
        name=properties.name,
        memory=properties.total_memory,
        built_for=torch.cuda.get_arch_list(),
    )
    stated = run.facts.get("capability")
    if stated and capability != stated:
        raise Wrong(f"this card is of compute capability {capability}, and the result is built for {stated}")
    oldest = run.facts.get("driver")
    if oldest and driver and int(driver.split(".")[0]) < int(oldest.split(".")[0]):
        raise Wrong(f"the driver is {driver}, and this result needs {oldest} or newer")
    x = torch.arange(1000, device="cuda", dtype=torch.float64)
    if x.sum().item() != 499500:
        raise Wrong("the card adds wrongly: 0 + 1 + … + 999 is not 499500")


def _driver() -> str | None:
    """The driver's version, from the kernel module or nvidia-smi; None where neither tells."""
    with contextlib.suppress(OSError), Path("/proc/driver/nvidia/version").open() as file:
        if match := re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", file.read()):
            return match[1]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return completed.stdout.split("\n")[0].strip() or None
    return None


@check("import.libraries")
def libraries(run: Run) -> None:
    """Use every NVIDIA library once, then look where each of them was loaded from."""
    import vllm
    from vllm import _custom_ops  # noqa: F401  # it loads vLLM's own libraries, whatever they are called

    x = torch.randn(64, 64, device="cuda")
    (x @ x, torch.fft.fft(x), torch.linalg.svdvals(x), x.to_sparse_csr() @ x)
    torch.nn.functional.conv2d(x[None, None], x[None, None, :3, :3])
    torch.cuda.synchronize()
    run.fact(cudnn=torch.backends.cudnn.version(), nccl=".".join(map(str, torch.cuda.nccl.version())))
    if not torch.backends.cudnn.version():
        raise Wrong("cuDNN reports no version")
    used = [path for path in _mapped() if GPU_LIBRARY.match(Path(path).name)]
    own = [path for path in used if not DRIVER.match(Path(path).name)]
    run.fact(libraries=own, driver_libraries=[path for path in used if path not in own])
    inside = [os.path.realpath(folder) for folder in run.facts.get("inside", ())]
    if not inside:
        return
    strangers = [
        path
        for path in (*own, torch.__file__, vllm.__file__)
        if not any(os.path.realpath(path).startswith(folder.rstrip("/") + "/") for folder in inside)
    ]
    if strangers:
        raise Wrong(
            f"{len(strangers)} libraries come from outside the result, the first is {strangers[0]};"
            f" the interpreter is {sys.executable}"
        )
