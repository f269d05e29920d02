"""Marlin: products of 16-bit activations with GPTQ, AWQ and fp8 weights.

vLLM's own functions prepare the weights, as they do for a model; the reference multiplies by what
the quantised weights stand for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers.quantization.utils import (
    marlin_utils,
    marlin_utils_test,
    quant_utils,
)
from vllm.model_executor.layers.quantization.utils.marlin_utils_fp8 import (
    is_fp8_marlin_supported,
    marlin_quant_fp8_torch,
)
from vllm.scalar_type import ScalarType, scalar_types

from . import references
from .checking import Run, Unsupported, check
from .dtypes import ACCUMULATED, sixteen_bit_types

_GEMM = ops.marlin_gemm if hasattr(ops, "marlin_gemm") else ops.gptq_marlin_gemm  # before 0.14
# Releases before 0.30 multiply by activation order too, and their functions take it: here, none.
_ORDERED = "act_order" in inspect.signature(marlin_utils_test.marlin_quantize).parameters
NO_ORDER: tuple[bool, ...] = (False,) if _ORDERED else ()
SHAPES = ((1, 1024, 512), (17, 512, 2048), (129, 1024, 1024))  # m, n, k


def require_marlin(run: Run, kind: ScalarType, *, zero_points: bool) -> None:
    """Raise Unsupported unless vLLM says that Marlin takes such weights on this card."""
    major, minor = run.capability
    able = marlin_utils.query_marlin_supported_quant_types(zero_points, device_capability=major * 10 + minor)
    if kind not in able:
        points = "with" if zero_points else "without"
        raise Unsupported(
            f"vLLM says that Marlin takes no {kind} weights {points} zero points on {major}.{minor}"
        )


def marlin(
    run: Run,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    kind: ScalarType,
    scales: torch.Tensor,
    n: int,
    k: int,
    zeros: torch.Tensor | None = None,
    g_idx: torch.Tensor | None = None,
    order: torch.Tensor | None = None,
) -> Callable[[], torch.Tensor]:
    """A call of Marlin for a [m, k] and packed weights of [k, n], with the arguments that this vLLM knows."""
    none = torch.empty(0, dtype=torch.int32, device=run.device)
    known = inspect.signature(_GEMM).parameters
    arguments = {
        "a": a,
        "c": None,
        "b_q_weight": b,
        "b_bias": None,
        "b_scales": scales,
        "a_scales": None,
        "global_scale": None,
        "b_zeros": none if zeros is None else zeros,
        "g_idx": none if g_idx is None else g_idx,
        "perm": none if order is None else order,
        "workspace": _workspace(run),
        "b_q_type": kind,
        "size_m": a.shape[0],
        "size_n": n,
        "size_k": k,
        "is_k_full": True,
        "use_atomic_add": False,
        "use_fp32_reduce": True,
        "is_zp_float": False,
    }
    return partial(_GEMM, **{name: value for name, value in arguments.items() if name in known})


def _workspace(run: Run) -> torch.Tensor:
    if run.dry:
        return torch.zeros(128, dtype=torch.int32)
    workspace: torch.Tensor = marlin_utils.marlin_make_workspace_new(run.device)
    return workspace


def _gptq(run: Run, kind: ScalarType) -> None:
    require_marlin(run, kind, zero_points=False)
    for dtype in sixteen_bit_types(run):
        for group, act_order in ((128, False), (-1, False), (64, _ORDERED)):
            for m, n, k in SHAPES:
                a = run.normal(m, k, dtype=dtype)
                # Prepared on the CPU; `w` is what the weights stand for.
                drawn = run.normal(k, n, dtype=dtype, scale=0.05).cpu()
                ordering = (True, run.permutation(k, torch.int64).cpu()) if act_order else NO_ORDER
                w, packed, scales, *order = marlin_utils_test.marlin_quantize(drawn, kind, group, *ordering)
                expected = references.matmul(a, w)
                packed, scales, *order = (x.to(run.device) for x in (packed, scales, *order[:2]))
                g_idx, permutation = order or (None, None)
                run.case(
                    f"{dtype} {m}×{n}×{k}, groups of {group}{', activation order' if act_order else ''}",
                    marlin(
                        run, a, packed, kind=kind, scales=scales, n=n, k=k, g_idx=g_idx, order=permutation
                    ),
                    expected,
                    ACCUMULATED[dtype],
                )
    _repack(run, kind.size_bits)


def _repack(run: Run, bits: int) -> None:
    """GPTQ's own packing, rearranged by vLLM's kernel, bit for bit as the slow definition does it."""
    k, n = 512, 1024
    codes = run.integers(0, 1 << bits, k, n)
    packed = quant_utils.gptq_pack(codes.cpu(), bits, k, n).to(run.device)
    expected = marlin_utils_test.marlin_weights(
        codes.cpu(), k, n, bits, marlin_utils_test.get_weight_perm(bits)
    )
    order = (torch.empty(0, dtype=torch.int32, device=run.device),) if _ORDERED else ()
    run.case("repack", partial(ops.gptq_marlin_repack, packed, *order, k, n, bits), expected, 0.0)


@check("marlin.gptq_4bit")
def gptq_4bit(run: Run) -> None:
    """Symmetric 4-bit weights, in groups and by activation order, and their repacking."""
    _gptq(run, scalar_types.uint4b8)


@check("marlin.gptq_8bit")
def gptq_8bit(run: Run) -> None:
    """Symmetric 8-bit weights, in groups and by activation order, and their repacking."""
    _gptq(run, scalar_types.uint8b128)


def _awq(run: Run, kind: ScalarType) -> None:
    require_marlin(run, kind, zero_points=True)
    for dtype in sixteen_bit_types(run):
        for group in (128, 32):
            for m, n, k in SHAPES:
                a = run.normal(m, k, dtype=dtype)
                w, packed, scales, zeros = (
                    x.to(run.device)
                    for x in marlin_utils_test.awq_marlin_quantize(
                        run.normal(k, n, dtype=dtype, scale=0.05).cpu(), kind, group
                    )
                )
                run.case(
                    f"{dtype} {m}×{n}×{k}, groups of {group}",
                    marlin(run, a, packed, kind=kind, scales=scales, n=n, k=k, zeros=zeros),
                    references.matmul(a, w),
                    ACCUMULATED[dtype],
                )
    bits, k, n = kind.size_bits, 512, 1024
    codes = run.integers(0, 1 << bits, k, n)
    packed = quant_utils.awq_pack(codes.cpu(), bits, k, n).to(run.device)
    expected = marlin_utils_test.marlin_weights(
        codes.cpu(), k, n, bits, marlin_utils_test.get_weight_perm(bits)
    )
    run.case("repack", partial(ops.awq_marlin_repack, packed, k, n, bits), expected, 0.0)


@check("marlin.awq_4bit")
def awq_4bit(run: Run) -> None:
    """4-bit weights with zero points, and their repacking."""
    _awq(run, scalar_types.uint4)


@check("marlin.awq_8bit")
def awq_8bit(run: Run) -> None:
    """8-bit weights with zero points, and their repacking."""
    _awq(run, scalar_types.uint8)


@check("marlin.fp8")
def fp8(run: Run) -> None:
    """fp8 weights with 16-bit activations: how vLLM runs fp8 models on cards without fp8 units."""
    if not run.dry and not is_fp8_marlin_supported():
        raise Unsupported("vLLM says that this card cannot run fp8 weights through Marlin")
    for dtype in sixteen_bit_types(run):
        for group in (-1, 128):
            for m, n, k in SHAPES:
                a = run.normal(m, k, dtype=dtype)
                drawn = run.normal(n, k, dtype=dtype, scale=0.05)
                w, packed, scales = marlin_quant_fp8_torch(drawn, group)
                run.case(
                    f"{dtype} {m}×{n}×{k}, groups of {group}",
                    marlin(run, a, packed, kind=scalar_types.float8_e4m3fn, scales=scales, n=n, k=k),
                    references.matmul(a, w),
                    ACCUMULATED[dtype],
                )
