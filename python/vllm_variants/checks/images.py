"""Which kernels an operator launches, and which image of the fat binary served each of them.

The call is captured into a CUDA graph; the graph's kernel nodes name their functions, and the
driver tells for each function the virtual architecture of the PTX it came from and the
architecture of its machine code (CUDA driver API: cuGraphKernelNodeGetParams,
cuFuncGetAttribute). `compute_80 → sm_90` on a device of 9.0 is PTX that was compiled, by the driver
or ahead of time; `sm_80` is a cubin of 8.0, `sm_90` one of 9.0 (the driver does not tell 9.0 from 9.0a).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch

_PTX_VERSION, _BINARY_VERSION = 5, 6  # CUfunction_attribute
_KERNEL_NODE, _CHILD_GRAPH_NODE = 0, 4  # CUgraphNodeType


class Kernel(TypedDict):
    """One kernel: its mangled name, and the SMs of its PTX and of its machine code: 80, 90."""

    name: str
    ptx: int
    binary: int


class _Params(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2: only `func` and `kern` are read."""

    _fields_ = (
        ("func", ctypes.c_void_p),
        ("dimensions", ctypes.c_uint * 7),
        ("kernel_params", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kern", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


def kernels(call: Callable[[], object]) -> list[Kernel] | None:
    """The kernels that `call` launches; None where it cannot be captured."""
    try:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, capture_error_mode="relaxed"):
            call()
        captured = _walk(ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(graph.raw_cuda_graph()))
        torch.cuda.synchronize()
    except Exception:  # an operator that synchronises cannot be captured: its image stays unknown
        torch.cuda.synchronize()
        return None
    return captured


def _walk(cuda: ctypes.CDLL, graph: ctypes.c_void_p) -> list[Kernel]:
    count = ctypes.c_size_t()
    if cuda.cuGraphGetNodes(graph, None, ctypes.byref(count)):
        return []
    nodes = (ctypes.c_void_p * count.value)()
    cuda.cuGraphGetNodes(graph, nodes, ctypes.byref(count))
    launched: list[Kernel] = []
    for node in nodes:
        kind = ctypes.c_int()
        cuda.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
        if kind.value == _CHILD_GRAPH_NODE:
            child = ctypes.c_void_p()
            cuda.cuGraphChildGraphNodeGetGraph(ctypes.c_void_p(node), ctypes.byref(child))
            launched += _walk(cuda, child)
        elif kind.value == _KERNEL_NODE and (kernel := _kernel(cuda, node)):
            launched.append(kernel)
    return launched


def _kernel(cuda: ctypes.CDLL, node: int | None) -> Kernel | None:
    params = _Params()
    if cuda.cuGraphKernelNodeGetParams_v2(ctypes.c_void_p(node), ctypes.byref(params)):
        return None
    function = ctypes.c_void_p(params.func)
    if not params.func and params.kern:
        cuda.cuKernelGetFunction(ctypes.byref(function), ctypes.c_void_p(params.kern))
    name, ptx, binary = ctypes.c_char_p(), ctypes.c_int(), ctypes.c_int()
    cuda.cuFuncGetName(ctypes.byref(name), function)
    cuda.cuFuncGetAttribute(ctypes.byref(ptx), _PTX_VERSION, function)
    cuda.cuFuncGetAttribute(ctypes.byref(binary), _BINARY_VERSION, function)
    return {"name": (name.value or b"").decode(errors="replace"), "ptx": ptx.value, "binary": binary.value}


def image(kernel: Kernel) -> str:
    """How a kernel's image is written for people: `sm_90`, or `compute_80 → sm_90`."""
    ptx, binary = kernel["ptx"], kernel["binary"]
    return f"sm_{binary}" if ptx == binary else f"compute_{ptx} → sm_{binary}"


def summary(launched: Sequence[Kernel]) -> str | None:
    """The images of these kernels without PyTorch's own element-wise ones, or None."""
    own = [kernel for kernel in launched if "at6native" not in kernel["name"]] or launched
    return ", ".join(sorted({image(kernel) for kernel in own})) or None
