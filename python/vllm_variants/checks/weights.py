"""Products with quantised weights beside Marlin: Machete, AllSpark, and the older GPTQ and AWQ kernels."""

from __future__ import annotations

import inspect
from functools import partial

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers.quantization.utils import quant_utils
from vllm.scalar_type import ScalarType, scalar_types

from . import references
from .checking import Run, Unsupported, check, moved, require_operator
from .dtypes import ACCUMULATED, sixteen_bit_types
from .marlin import SHAPES

# The second is where releases before 0.15 have it.
MacheteLinearKernel = moved(
    "vllm.model_executor.kernels.linear.mixed_precision.machete",
    "vllm.model_executor.layers.quantization.kernels.mixed_precision.machete",
).MacheteLinearKernel


@check("machete.gptq_4bit")
def machete_4bit(run: Run) -> None:
    """Symmetric 4-bit weights."""
    _machete(run, scalar_types.uint4b8, zero_points=False)


@check("machete.gptq_8bit")
def machete_8bit(run: Run) -> None:
    """Symmetric 8-bit weights."""
    _machete(run, scalar_types.uint8b128, zero_points=False)


@check("machete.awq_4bit")
def machete_awq(run: Run) -> None:
    """4-bit weights with zero points."""
    _machete(run, scalar_types.uint4, zero_points=True)


def _machete(run: Run, kind: ScalarType, zero_points: bool) -> None:
    least = MacheteLinearKernel.get_min_capability()
    major, minor = run.capability
    if (major, minor) != divmod(least, 10):  # vLLM runs it on exactly this capability
        raise Unsupported(
            f"vLLM runs Machete on {least // 10}.{least % 10} only, and this is {major}.{minor}"
        )
    for dtype in (torch.float16, torch.bfloat16):
        for group in (128, -1):
            for m, n, k in SHAPES:
                a = run.normal(m, k, dtype=dtype)
                w, codes, scales, zeros = quant_utils.quantize_weights(
                    run.normal(k, n, dtype=dtype, scale=0.05).cpu(), kind, group, zero_points,
                    ref_zero_points_after_scales=True,
                )  # fmt: skip
                packed = quant_utils.pack_quantized_values_into_int32(codes, kind, packed_dim=0).to(
                    run.device
                )
                scales = scales.to(run.device)
                if zero_points:
                    zeros = (-1.0 * scales * zeros.to(run.device).to(dtype)).contiguous()
                ready = ops.machete_prepack_B(packed.t().contiguous().t(), dtype, kind, dtype)
                run.case(
                    f"{dtype} {m}×{n}×{k}, groups of {group}",
                    partial(
                        ops.machete_mm,
                        a=a,
                        b_q=ready,
                        b_type=kind,
                        b_group_scales=scales,
                        b_group_zeros=zeros,
                        b_group_size=group,
                    ),
                    references.matmul(a, w),
                    ACCUMULATED[dtype],
                )


@check("allspark.w8a16")
def allspark(run: Run) -> None:
    """8-bit weights, one scale a channel."""
    require_operator(ops, "allspark_w8a16_gemm", "Marlin takes 8-bit weights on 8.0 to 8.9")
    from vllm.model_executor.layers.quantization.utils import allspark_utils

    kind = scalar_types.uint8b128
    for dtype in sixteen_bit_types(run):
        for m, n, k in SHAPES:
            if not run.dry:
                able, reason = allspark_utils.check_allspark_supported_dtype_shape(k, n, -1, kind, dtype)
                if not able:
                    raise Unsupported(reason)
            a = run.normal(m, k, dtype=dtype)
            w, codes, scales, _ = quant_utils.quantize_weights(
                run.normal(k, n, dtype=dtype, scale=0.05).cpu(), kind, -1, False
            )
            codes, scales = codes.to(torch.uint8).to(run.device), scales.to(dtype).to(run.device)
            packed, ordered, _ = ops.allspark_repack_weight(codes, scales, None, False)
            count = 1 if run.dry else torch.cuda.get_device_properties(0).multi_processor_count
            major, minor = run.capability
            run.case(
                f"{dtype} {m}×{n}×{k}",
                partial(
                    ops.allspark_w8a16_gemm,
                    a,
                    packed,
                    ordered,
                    None,
                    n,
                    -1,
                    count,
                    major * 10 + minor,
                    allspark_utils.ALLSPARK_AMPERE_M_CUBLAS_THRESHOLD,
                    False,
                    True,
                ),
                references.matmul(a, w),
                ACCUMULATED[dtype],
            )


@check("gptq.exllama_4bit")
def gptq_exllama(run: Run) -> None:
    """The kernel of GPTQ's first days, which every card still runs."""
    bits, kind, group = 4, scalar_types.uint4b8, 128
    for m, n, k in SHAPES:
        a = run.normal(m, k, dtype=torch.float16)
        w, codes, scales, _ = quant_utils.quantize_weights(
            run.normal(k, n, dtype=torch.float16, scale=0.05).cpu(), kind, group, False
        )
        packed = quant_utils.gptq_pack(codes, bits, k, n).to(run.device)
        # The format stores zero points less one: 8 everywhere becomes the nibbles 7.
        zeros = torch.full((k // group, n // 8), 0x77777777, dtype=torch.int32, device=run.device)
        none = torch.empty(0, dtype=torch.int32, device=run.device)
        scales = scales.to(run.device)
        # Releases before 0.30 take an activation order besides, which is empty here.
        order = (none,) if "q_perm" in inspect.signature(ops.gptq_shuffle).parameters else ()
        ops.gptq_shuffle(packed, *order, bits)
        run.case(
            f"{m}×{n}×{k}",
            partial(ops.gptq_gemm, a, packed, zeros, scales, *order, True, False, bits),
            references.matmul(a, w),
            2e-2,  # sums in half precision
        )


@check("awq.gemm_4bit")
def awq_gemm(run: Run) -> None:
    """AWQ's own kernels: the product, and the dequantisation that large batches use."""
    kind, group = scalar_types.uint4, 128
    for m, n, k in SHAPES:
        a = run.normal(m, k, dtype=torch.float16)
        w, codes, scales, zeros = quant_utils.quantize_weights(
            run.normal(k, n, dtype=torch.float16, scale=0.05).cpu(), kind, group, True
        )
        packed = quant_utils.awq_pack(codes, 4, k, n).to(run.device)
        points = quant_utils.awq_pack(zeros, 4, k // group, n).to(run.device)
        scales = scales.to(run.device)
        run.case(
            f"product {m}×{n}×{k}",
            partial(ops.awq_gemm, a, packed, scales, points, 8),
            references.matmul(a, w),
            5e-3,
        )
        run.case(
            f"dequantise {k}×{n}",
            partial(ops.awq_dequantize, packed, scales, points, 0, 0, 0),
            references.exact(w),
            1e-3,
        )
