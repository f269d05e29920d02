"""Marlin: products of 16-bit activations with GPTQ, AWQ and fp8 weights.

vLLM's own functions prepare the weights, as they do for a model; the reference multiplies by what
the quantised weights stand for.
"""

import inspect

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
from vllm.scalar_type import scalar_types

from . import references
from .checking import Unsupported, check

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 8e-3}
SHAPES = ((1, 1024, 512), (17, 512, 2048), (129, 1024, 1024))  # m, n, k


def half_precision(run):
    """The 16-bit types to try: bfloat16 arithmetic begins with 8.0."""
    return (torch.float16, torch.bfloat16) if run.capability >= (8, 0) else (torch.float16,)


def ask_marlin(run, kind, *, zero_points):
    """Raise Unsupported unless vLLM says that Marlin takes such weights on this card."""
    major, minor = run.capability
    able = marlin_utils.query_marlin_supported_quant_types(zero_points, device_capability=major * 10 + minor)
    if kind not in able:
        points = "with" if zero_points else "without"
        raise Unsupported(
            f"vLLM says that Marlin takes no {kind} weights {points} zero points on {major}.{minor}"
        )


def marlin(run, a, b, *, kind, scales, n, k, zeros=None, g_idx=None, order=None):
    """Call Marlin with the arguments that this release of vLLM knows."""
    none = torch.empty(0, dtype=torch.int32, device=run.device)
    known = inspect.signature(ops.gptq_marlin_gemm).parameters
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
    chosen = {name: value for name, value in arguments.items() if name in known}
    return lambda: ops.gptq_marlin_gemm(**chosen)


def _workspace(run):
    if run.dry:
        return torch.zeros(128, dtype=torch.int32)
    return marlin_utils.marlin_make_workspace_new(run.device)


def _gptq(run, kind):
    ask_marlin(run, kind, zero_points=False)
    bits = kind.size_bits
    for dtype in half_precision(run):
        for group, act_order in ((128, False), (-1, False), (64, True)):
            for m, n, k in SHAPES:
                a = run.normal(m, k, dtype=dtype)
                # Prepared on the CPU; `w` is what the weights stand for.
                w, packed, scales, g_idx, order, _ = marlin_utils_test.marlin_quantize(
                    run.normal(k, n, dtype=dtype, scale=0.05).cpu(), kind, group, act_order,
                    run.permutation(k, torch.int64).cpu() if act_order else None,
                )  # fmt: skip
                expected = references.matmul(a, w)
                packed, scales, g_idx, order = (x.to(run.device) for x in (packed, scales, g_idx, order))
                run.case(
                    f"{dtype} {m}×{n}×{k}, groups of {group}{', activation order' if act_order else ''}",
                    marlin(run, a, packed, kind=kind, scales=scales, n=n, k=k, g_idx=g_idx, order=order),
                    expected,
                    TOLERANCE[dtype],
                )
    _repack(run, kind, bits)


def _repack(run, kind, bits):
    """GPTQ's own packing, rearranged by vLLM's kernel, bit for bit as the slow definition does it."""
    k, n = 512, 1024
    codes = run.integers(0, 1 << bits, k, n)
    packed = quant_utils.gptq_pack(codes.cpu(), bits, k, n).to(run.device)
    expected = marlin_utils_test.marlin_weights(
        codes.cpu(), k, n, bits, marlin_utils_test.get_weight_perm(bits)
    )
    none = torch.empty(0, dtype=torch.int32, device=run.device)
    run.case("repack", lambda: ops.gptq_marlin_repack(packed, none, k, n, bits), expected, 0.0)


@check("marlin.gptq_4bit")
def gptq_4bit(run):
    _gptq(run, scalar_types.uint4b8)


@check("marlin.gptq_8bit")
def gptq_8bit(run):
    _gptq(run, scalar_types.uint8b128)


def _awq(run, kind):
    ask_marlin(run, kind, zero_points=True)
    for dtype in half_precision(run):
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
                    TOLERANCE[dtype],
                )
    bits, k, n = kind.size_bits, 512, 1024
    codes = run.integers(0, 1 << bits, k, n)
    packed = quant_utils.awq_pack(codes.cpu(), bits, k, n).to(run.device)
    expected = marlin_utils_test.marlin_weights(
        codes.cpu(), k, n, bits, marlin_utils_test.get_weight_perm(bits)
    )
    run.case("repack", lambda: ops.awq_marlin_repack(packed, k, n, bits), expected, 0.0)


@check("marlin.awq_4bit")
def awq_4bit(run):
    _awq(run, scalar_types.uint4)


@check("marlin.awq_8bit")
def awq_8bit(run):
    _awq(run, scalar_types.uint8)


@check("marlin.fp8")
def fp8(run):
    """fp8 weights with 16-bit activations: how vLLM runs fp8 models on cards without fp8 units."""
    if not run.dry and not is_fp8_marlin_supported():
        raise Unsupported("vLLM says that this card cannot run fp8 weights through Marlin")
    for dtype in half_precision(run):
        for group in (-1, 128):
            for m, n, k in SHAPES:
                a = run.normal(m, k, dtype=dtype)
                made = run.normal(n, k, dtype=dtype, scale=0.05)
                w, packed, scales = marlin_quant_fp8_torch(made, group)
                run.case(
                    f"{dtype} {m}×{n}×{k}, groups of {group}",
                    marlin(run, a, packed, kind=scalar_types.float8_e4m3fn, scales=scales, n=n, k=k),
                    references.matmul(a, w),
                    TOLERANCE[dtype],
                )
