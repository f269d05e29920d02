"""Dry runs: every operator of vLLM's libraries gets a CPU kernel that computes nothing.

The registered schema still judges each call: missing, surplus and mistyped arguments raise; a Triton
kernel's own signature judges its launch. Return values are uninitialised tensors of one element, so
every comparison fails; what a dry run shows is whether a check gets that far. It needs no GPU and no driver.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import no_driver

no_driver.stand_in()  # before torch and vLLM ask for the driver

import torch  # noqa: E402

# Libraries unregister their kernels when they are collected.
_KEPT: list[torch.library.Library] = []

# Operators that return lists of another length than two.
_LISTS = {"_vllm_fa3_C::fwd": 4, "_flashmla_C::sparse_prefill_fwd": 3}
_WRITTEN = "c_or_none"  # Marlin's argument for the tensor that it writes and returns

Called = Callable[[str, str, tuple[str, ...]], None]
"""(an operator's name, its schema, the names of the arguments that a call gave)."""


def _nobody(name: str, schema: str, given: tuple[str, ...]) -> None:
    """Tell nobody of a call."""


def _value(kind: str) -> object:
    """A value of a type as schemas write it: Tensor, int, …; None for one that no operator here returns."""
    if kind == "Tensor":
        return torch.empty(1)
    if kind == "List[Tensor]":
        return [torch.empty(1) for _ in range(2)]
    return {"int": 1, "bool": True, "List[str]": [""]}.get(kind)


def _empty_kernel(schema: torch._C.FunctionSchema, called: Called) -> Callable[..., object]:
    """A kernel that takes anything, tells of the call, and returns what the schema promises."""
    kinds = [str(returned.type) for returned in schema.returns]
    names = [argument.name for argument in schema.arguments]
    text = str(schema)
    count = _LISTS.get(schema.name)

    def kernel(*arguments: object, **keywords: object) -> object:
        called(schema.name, text, (*names[: len(arguments)], *keywords))
        if count:
            return [torch.empty(1) for _ in range(count)]
        given = dict(zip(names, arguments, strict=False)) | keywords
        if given.get(_WRITTEN) is not None:
            return given[_WRITTEN]
        values = tuple(_value(kind) for kind in kinds)
        return None if not values else values[0] if len(values) == 1 else values

    return kernel


class _Hopper:
    """What of a device's properties vLLM asks for."""

    name, major, minor = "NVIDIA H100", 9, 0
    multi_processor_count, total_memory, shared_memory_per_block_optin = 132, 80 << 30, 227 << 10


def prepare(called: Called = _nobody) -> None:
    """Register the empty kernels, and let the device look like a CUDA one of 9.0; `called` hears of calls."""
    known = frozenset(schema.name for schema in torch._C._jit_get_all_schemas())
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda *_: _Hopper()
    torch.cuda.synchronize = lambda *_: None
    _launch_nothing()
    from vllm import platforms
    from vllm.platforms import cuda

    platform = cuda.NonNvmlCudaPlatform()
    platform.dispatch_key = "CPU"  # vLLM's own operators in Python are called as they are
    platforms._current_platform = platform
    import vllm

    folder = Path(vllm.__file__).parent
    for path in folder.rglob("*.so"):
        with contextlib.suppress(ImportError):
            importlib.import_module(".".join(path.relative_to(folder.parent).parts).split(".abi3")[0])
    warnings.simplefilter("ignore")
    register(known, called)


def register(known: frozenset[str], called: Called) -> None:
    """Give an empty kernel to every operator that is not in `known` and has none for the CPU."""
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        name += f".{schema.overload_name}" if schema.overload_name else ""
        if schema.name not in known and schema.arguments:
            library = torch.library.Library(namespace, "IMPL")
            with contextlib.suppress(RuntimeError):
                library.impl(name, _empty_kernel(schema, called), "CPU")
            _KEPT.append(library)


def _launch_nothing() -> None:
    """Let Triton believe in its driver, and hold launches of its kernels to their signatures alone."""
    from triton.backends.nvidia import driver
    from triton.runtime.jit import JITFunction

    driver.CudaDriver.is_active = staticmethod(lambda: True)
    # What a launch takes besides the kernel's own parameters.
    options = frozenset({"num_warps", "num_stages", "num_ctas", "maxnreg", "launch_pdl", "warp_size"})

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        own = {name: value for name, value in keywords.items() if name not in options}
        inspect.signature(self.fn).bind(*arguments, **own)

    JITFunction.run = run
