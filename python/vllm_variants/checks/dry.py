"""Dry runs: every operator of vLLM's libraries gets a CPU kernel that computes nothing.

The registered schema still judges each call: missing, surplus and mistyped arguments raise. Return
values are uninitialised tensors of one element, so every comparison fails; what a dry run shows
is whether a check gets that far. It needs no GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

NAMESPACES = ("_C", "_moe_C", "_C_cache_ops", "_C_cuda_utils", "_vllm_fa2_C", "_vllm_fa3_C",
              "_flashmla_C", "_flashmla_extension_C")  # fmt: skip


# Libraries unregister their kernels when they are collected.
_KEPT: list[torch.library.Library] = []


def _value(kind: str) -> object:
    """A value of a type as schemas write it: Tensor, int, …; None for one that no operator here returns."""
    if kind == "Tensor":
        return torch.empty(1)
    if kind == "List[Tensor]":
        return [torch.empty(1) for _ in range(2)]
    return {"int": 1, "bool": True, "List[str]": [""]}.get(kind)


def _empty_kernel(schema: torch._C.FunctionSchema) -> Callable[..., object]:
    """A kernel that takes anything and returns what the schema promises."""
    kinds = [str(returned.type) for returned in schema.returns]
    if schema.name == "_vllm_fa3_C::fwd":
        return lambda *arguments, **keywords: [torch.empty(1) for _ in range(4)]

    def kernel(*arguments: object, **keywords: object) -> object:
        values = tuple(_value(kind) for kind in kinds)
        return None if not values else values[0] if len(values) == 1 else values

    return kernel


def prepare() -> None:
    """Register the empty kernels, and let the device look like a CUDA one of 9.0."""
    import vllm

    folder = Path(vllm.__file__).parent
    for path in folder.rglob("*.so"):
        with contextlib.suppress(ImportError):
            importlib.import_module(".".join(path.relative_to(folder.parent).parts).split(".abi3")[0])
    warnings.simplefilter("ignore")
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace in NAMESPACES and schema.arguments:
            library = torch.library.Library(namespace, "IMPL")
            with contextlib.suppress(RuntimeError):
                library.impl(name, _empty_kernel(schema), "CPU")
            _KEPT.append(library)
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.synchronize = lambda *_: None
