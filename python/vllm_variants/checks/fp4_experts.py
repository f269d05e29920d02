"""Grouped products of experts in fp4: nvfp4 (blocks of 16, fp8 scales) and mxfp4 (of 32, powers of two)."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from vllm import _custom_ops as ops

from .checking import Run, check, require, require_operator
from .dtypes import ROUNDING
from .quantisation import fp4_dequantised, fp4_values, unswizzled

CASES = ((4, 256, 512), (12, 512, 256))
"""Experts, and the n and k of each one's product."""
PADDED = 128
"""Each expert's scales begin at a multiple of so many rows."""


class Groups:
    """Rows of random 16-bit values for each expert, where each expert's begin, and its weights [e, n, k]."""

    def __init__(self, run: Run, dtype: torch.dtype, experts: int, n: int, k: int) -> None:
        self.experts, self.n, self.k = experts, n, k
        sizes = run.integers(1, 200, experts, dtype=torch.int64).tolist()
        self.starts = [0, *itertools.accumulate(sizes)]
        self.scale_starts = [0, *itertools.accumulate(-(-size // PADDED) * PADDED for size in sizes)]
        self.offsets = run.tensor(self.starts, torch.int32)
        self.scale_offsets = run.tensor(self.scale_starts, torch.int32)
        self.problems = run.tensor([[size, n, k] for size in sizes], torch.int32)
        self.rows = run.normal(self.starts[-1], k, dtype=dtype)
        self.weights = run.normal(experts, n, k, dtype=dtype, scale=k**-0.5)
        self.out = run.empty(self.starts[-1], n, dtype=dtype)

    def rows_of(self, expert: int) -> slice:
        """Its rows of the packed activations."""
        return slice(self.starts[expert], self.starts[expert + 1])

    def scales_of(self, expert: int) -> slice:
        """Its rows of their scales."""
        return slice(self.scale_starts[expert], self.scale_starts[expert + 1])


@check("moe.fp4")
def nvfp4(run: Run) -> None:
    """One CUTLASS launch for all experts' products, activations and weights quantised to nvfp4 by vLLM."""
    require(run, ops.cutlass_scaled_mm_supports_fp4, "fp4 is")
    for dtype in (torch.float16, torch.bfloat16):
        for experts, n, k in CASES:
            groups = Groups(run, dtype, experts, n, k)
            limit = (448.0 * 6.0 / groups.rows.abs().max().float()).reshape(1)
            rows, scales = ops.scaled_fp4_experts_quant(
                groups.rows, limit.expand(experts).contiguous(), groups.offsets, groups.scale_offsets, 1
            )
            limits = [(448.0 * 6.0 / weight.abs().max().float()).reshape(1) for weight in groups.weights]
            packed = [
                ops.scaled_fp4_quant(weight, own) for weight, own in zip(groups.weights, limits, strict=True)
            ]
            exact = [
                fp4_dequantised(rows[groups.rows_of(e)], scales[groups.scales_of(e)], limit)
                @ fp4_dequantised(weight, steps, limits[e]).T
                for e, (weight, steps) in enumerate(packed)
            ]
            run.case(
                f"{dtype} {experts} experts, {len(groups.rows)}×{n}×{k}",
                partial(
                    ops.cutlass_fp4_moe_mm, groups.out, rows, torch.stack([q for q, _ in packed]), scales,
                    torch.stack([s for _, s in packed]), 1.0 / (limit * torch.cat(limits)), groups.problems,
                    groups.offsets[:-1], groups.scale_offsets[:-1],
                ),
                torch.cat(exact),
                2 * ROUNDING[dtype],
                outputs=[groups.out],
            )  # fmt: skip


def _power(codes: torch.Tensor) -> torch.Tensor:
    """What bytes of a power-of-two scale (e8m0) stand for."""
    return torch.exp2(codes.cpu().double() - 127)


def _mxfp4(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What packed mxfp4 rows with swizzled scales stand for, in float64."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    blocks = unswizzled(_power(scales), rows, columns // 32)
    return fp4_values(packed) * blocks.repeat_interleave(32, 1)


@check("moe.mxfp4")
def mxfp4(run: Run) -> None:
    """One CUTLASS launch for all experts' products, activations and weights quantised to mxfp4 by vLLM."""
    name = "mxfp4_experts_quant_supported"
    require_operator(ops, name, "vLLM unpacks mxfp4 experts into Marlin or Triton")
    require(run, ops.mxfp4_experts_quant_supported, "mxfp4 is")
    for dtype in (torch.float16, torch.bfloat16):
        for experts, n, k in CASES:
            groups = Groups(run, dtype, experts, n, k)
            rows, scales = ops.mxfp4_experts_quant(
                groups.rows, groups.offsets, groups.scale_offsets, experts, 1
            )
            bounds = run.tensor([n * e for e in range(experts + 1)], torch.int32)
            weights, steps = ops.mxfp4_experts_quant(groups.weights.flatten(0, 1), bounds, bounds, experts, 1)
            weights, steps = weights.view(experts, n, k // 2), steps[: experts * n].view(experts, n, -1)
            exact = [
                _mxfp4(rows[groups.rows_of(e)], scales[groups.scales_of(e)]) @ _mxfp4(weights[e], steps[e]).T
                for e in range(experts)
            ]
            run.case(
                f"{dtype} {experts} experts, {len(groups.rows)}×{n}×{k}",
                partial(
                    ops.cutlass_mxfp4_moe_mm, groups.out, rows, weights, scales, steps, groups.problems,
                    groups.offsets[:-1], groups.scale_offsets[:-1],
                ),
                torch.cat(exact),
                2 * ROUNDING[dtype],
                outputs=[groups.out],
            )  # fmt: skip
