"""CUTLASS matrix products of quantised operands: fp8, int8, block-scaled fp8, fp4, and 2:4 sparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check, require, require_operator
from .dtypes import FP8, ROUNDING, sixteen_bit_types
from .quantisation import fp4_dequantised

# Tensor cores add up fp8 products in fewer bits than float32 has.
FP8_SUMS = {torch.float16: 4e-3, torch.bfloat16: 8e-3}
SHAPES = ((1, 512, 512), (17, 1024, 2048), (128, 4096, 512), (512, 512, 1024), (83, 192, 496))


def _fp8(run: Run, *shape: int) -> torch.Tensor:
    return run.normal(*shape, dtype=torch.float32).to(FP8)


def _int8(run: Run, *shape: int) -> torch.Tensor:
    return run.integers(-127, 128, *shape, dtype=torch.int8)


def _scales(run: Run, m: int, n: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale of a, scale of b): one number each, or one a token and one a channel."""
    rows, columns = (1, 1) if kind == "per-tensor" else (m, n)
    return run.uniform(rows, 1, low=0.01, high=0.1), run.uniform(1, columns, low=0.01, high=0.1)


def _dense(run: Run, make: Callable[..., torch.Tensor], tolerance: Mapping[torch.dtype, float]) -> None:
    for dtype in sixteen_bit_types(run):
        for m, n, k in SHAPES:
            for kind in ("per-tensor", "per-token and per-channel"):
                for biased in (False, True):
                    a, b = make(run, m, k), make(run, n, k).t()
                    scale_a, scale_b = _scales(run, m, n, kind)
                    bias = run.normal(n, dtype=dtype) if biased else None
                    run.case(
                        f"{kind} {dtype} {m}×{n}×{k}{', bias' if biased else ''}",
                        partial(ops.cutlass_scaled_mm, a, b, scale_a, scale_b, dtype, bias),
                        references.matmul(a, b, scale_a, scale_b, bias),
                        tolerance[dtype],
                    )


@check("scaled_mm.fp8")
def fp8(run: Run) -> None:
    """Scales per tensor, and per token and channel; with and without a bias."""
    require(run, ops.cutlass_scaled_mm_supports_fp8, "fp8 is")
    _dense(run, _fp8, FP8_SUMS)


@check("scaled_mm.int8")
def int8(run: Run) -> None:
    """Scales per tensor, and per token and channel; with and without a bias."""
    _dense(run, _int8, ROUNDING)


@check("scaled_mm.int8_azp")
def int8_azp(run: Run) -> None:
    """Asymmetric int8: a's zero points, per token and per tensor."""
    for dtype in sixteen_bit_types(run):
        for m, n, k in SHAPES[1:3]:
            a, b = _int8(run, m, k), _int8(run, n, k).t()
            scale_a, scale_b = _scales(run, m, n, "per token")
            zero = run.integers(-100, 100, m, 1)
            sums = b.cpu().to(torch.int32).sum(0, keepdim=True, dtype=torch.int32).to(run.device)
            shifted = references.exact(a) - references.exact(zero)
            run.case(
                f"per-token {dtype} {m}×{n}×{k}",
                partial(ops.cutlass_scaled_mm_azp, a, b, scale_a, scale_b, dtype, sums, zero),
                references.matmul(shifted, b, scale_a, scale_b),
                ROUNDING[dtype],
            )


@check("scaled_mm.fp8_blocks")
def fp8_blocks(run: Run) -> None:
    """Scales for 1×128 blocks of activations and 128×128 blocks of weights."""
    require(run, ops.cutlass_scaled_mm_supports_block_fp8, "block-scaled fp8 is")
    for m, n, k in ((4, 512, 512), (84, 2048, 1024), (256, 576, 4096)):
        a, b = _fp8(run, m, k), _fp8(run, n, k).t()
        # Both scales are stored column by column: [m, k/128] and [k/128, n/128].
        scale_a = run.uniform(k // 128, m, low=0.01, high=0.1).t()
        scale_b = run.uniform(-(-n // 128), k // 128, low=0.01, high=0.1).t()
        whole_a = references.spread(scale_a, 1, 128)
        whole_b = references.spread(scale_b, 128, 128)[:, :n]
        run.case(
            f"{m}×{n}×{k}",
            partial(ops.cutlass_scaled_mm, a, b, scale_a, scale_b, torch.bfloat16),
            references.matmul(a, b, whole_a, whole_b),
            FP8_SUMS[torch.bfloat16],
        )


@check("scaled_mm.fp4")
def fp4(run: Run) -> None:
    """Both operands quantised to fp4 by vLLM."""
    require(run, ops.cutlass_scaled_mm_supports_fp4, "fp4 is")
    for dtype in (torch.float16, torch.bfloat16):
        for m, n, k in ((128, 128, 64), (150, 256, 512), (512, 1024, 2048)):
            a, b = (run.normal(rows, k, dtype=dtype) for rows in (m, n))
            limits = [(448.0 * 6.0 / x.abs().max().float()).reshape(1) for x in (a, b)]
            (qa, sa), (qb, sb) = (
                ops.scaled_fp4_quant(x, limit) for x, limit in zip((a, b), limits, strict=True)
            )
            alpha = 1.0 / (limits[0] * limits[1])
            expected = fp4_dequantised(qa, sa, limits[0]) @ fp4_dequantised(qb, sb, limits[1]).T
            run.case(
                f"{dtype} {m}×{n}×{k}",
                partial(ops.cutlass_scaled_fp4_mm, qa, qb, sa, sb, alpha, dtype),
                expected,
                FP8_SUMS[dtype],
            )


@check("scaled_mm.sparse_fp8")
def sparse_fp8(run: Run) -> None:
    """2:4 sparse weights: two of every four values along k are zero."""
    name = "cutlass_sparse_scaled_mm_supported"
    require_operator(ops, name, "vLLM runs no 2:4 sparse weights any more")
    require(run, ops.cutlass_sparse_scaled_mm_supported, "the 2:4 sparse product is")
    for m, n, k in ((128, 512, 1024), (512, 1024, 512)):
        a, b = _fp8(run, m, k), _fp8(run, n, k)
        order = run.uniform(n, k // 4, 4).argsort(-1).argsort(-1)
        b = torch.where(order.reshape(n, k) < 2, b.float(), 0.0).to(FP8)
        scale_a, scale_b = _scales(run, m, n, "per-token")
        values, meta = ops.cutlass_sparse_compress(b)
        if run.dry:  # of one element, which the product refuses
            values = b
        run.case(
            f"{m}×{n}×{k}",
            partial(ops.cutlass_scaled_sparse_mm, a, values, meta, scale_a, scale_b, torch.bfloat16),
            references.matmul(a, b.t(), scale_a, scale_b),
            FP8_SUMS[torch.bfloat16],
        )
