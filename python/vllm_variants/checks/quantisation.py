"""Quantisation of activations to fp8, int8 and fp4."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check, require
from .comparing import first_output
from .dtypes import FP8, FP8_ROUNDING, floating_types, sixteen_bit_types

SHAPES = ((1, 512), (7, 4096), (200, 5120))


@check("quantisation.fp8")
def fp8(run: Run) -> None:
    """Static, per tensor and per token."""
    for dtype in floating_types(run):
        for tokens, size in SHAPES:
            x = run.normal(tokens, size, dtype=dtype)
            label = f"{dtype} {tokens}×{size}"
            exact = references.exact(x)
            scale = run.tensor([0.015625], torch.float32)
            run.case(
                f"static {label}",
                partial(first_output, ops.scaled_fp8_quant, x, scale),
                references.fp8(exact / 0.015625),
                FP8_ROUNDING / 4,
            )
            whole = exact.abs().max() / 448.0
            run.case(
                f"per-tensor {label}",
                partial(_per_tensor_fp8, x),
                (references.fp8(exact / whole), whole.reshape(1)),
                (FP8_ROUNDING, 1e-6),
            )
            rows = exact.abs().amax(-1, keepdim=True) / 448.0
            run.case(
                f"per-token {label}",
                partial(ops.scaled_fp8_quant, x, use_per_token_if_dynamic=True),
                (references.fp8(exact / rows), rows),
                (FP8_ROUNDING, 1e-6),
            )


def _per_tensor_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale = ops.scaled_fp8_quant(x)
    return q, scale.reshape(1)  # of shape 1×1 in 0.11.2


@check("quantisation.fp8_groups")
def fp8_groups(run: Run) -> None:
    """One scale for each 64 and 128 values."""
    _groups(run, FP8, "per_token_group_fp8_quant", 448.0, references.fp8)


@check("quantisation.int8_groups")
def int8_groups(run: Run) -> None:
    """One scale for each 64 and 128 values."""
    _groups(run, torch.int8, "per_token_group_quant_int8", 127.0, references.int8)


def _groups(
    run: Run,
    kind: torch.dtype,
    name: str,
    largest: float,
    rounding: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    operator = getattr(torch.ops._C, name)
    # Of what follows the range, all is about the layout of the scales: rows of floats, as they are here.
    tail = (False,) * (len(operator.default._schema.arguments) - 7)
    for dtype in sixteen_bit_types(run):
        for tokens, size in SHAPES:
            for group in (64, 128):
                x = run.normal(tokens, size, dtype=dtype)
                out = run.empty(tokens, size, dtype=kind)
                steps = run.empty(tokens, size // group, dtype=torch.float32)
                expected = references.exact(x).view(tokens, -1, group).abs().amax(-1) / largest
                scaled = references.exact(x) / references.spread(expected, 1, group)
                run.case(
                    f"{dtype} {tokens}×{size}, groups of {group}",
                    partial(operator, x, out, steps, group, 1e-10, -largest, largest, *tail),
                    (rounding(scaled), expected),
                    (FP8_ROUNDING, 1e-6),
                    outputs=[out, steps],
                )


@check("quantisation.int8")
def int8(run: Run) -> None:
    """Static, per token, and asymmetric with zero points."""
    for dtype in floating_types(run):
        for tokens, size in SHAPES:
            x = run.normal(tokens, size, dtype=dtype)
            exact, label = references.exact(x), f"{dtype} {tokens}×{size}"
            scale = run.tensor([0.03125], torch.float32)
            run.case(
                f"static {label}",
                partial(first_output, ops.scaled_int8_quant, x, scale),
                references.int8(exact / 0.03125),
                5e-3,
            )
            rows = exact.abs().amax(-1, keepdim=True) / 127.0
            run.case(
                f"per-token {label}",
                partial(_per_token_int8, x),
                (references.int8(exact / rows), rows),
                (5e-3, 1e-6),
            )
            run.case(
                f"asymmetric {label}",
                partial(_int8_and_back, x),
                exact,
                2e-2,
            )


def _per_token_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, scale, _ = ops.scaled_int8_quant(x)
    return q, scale


def _int8_and_back(x: torch.Tensor) -> torch.Tensor:
    q, scale, zero_point = ops.scaled_int8_quant(x, symmetric=False)
    values: torch.Tensor = (q.float() - zero_point.float()) * scale
    return values


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unswizzled(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Undo the 128×4 interleaving of fp4 block scales; returns the first rows × columns, float64."""
    tiles = references.exact(scales).reshape(-1, 4 * ((columns + 3) // 4))
    high, wide = tiles.shape[0] // 128, tiles.shape[1] // 4
    plain = tiles.reshape(high, wide, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(high * 128, wide * 4)
    return plain[:rows, :columns]


def fp4_values(packed: torch.Tensor) -> torch.Tensor:
    """The float64 values of packed e2m1 pairs, low nibble first."""
    codes = torch.stack([packed.cpu() & 0xF, packed.cpu() >> 4], -1).flatten(-2).long()
    table = torch.tensor(E2M1, dtype=torch.float64)
    return torch.where(codes >= 8, -table[codes % 8], table[codes % 8])


def fp4_dequantised(packed: torch.Tensor, scales: torch.Tensor, global_scale: torch.Tensor) -> torch.Tensor:
    """What a packed fp4 matrix with swizzled block scales stands for, in float64."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    blocks = unswizzled(scales, rows, columns // 16)
    return fp4_values(packed) * blocks.repeat_interleave(16, 1) / references.exact(global_scale)


def _fp4_and_back(x: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Quantise on the GPU, dequantise on the CPU: which of two equally near codes was taken is left open."""
    packed, scales = ops.scaled_fp4_quant(x, limit)
    return fp4_dequantised(packed, scales, limit)


@check("quantisation.fp4")
def fp4(run: Run) -> None:
    """To fp4 and back: blocks of 16 values with fp8 scales."""
    require(run, ops.cutlass_scaled_mm_supports_fp4, "fp4 is")
    for dtype in (torch.float16, torch.bfloat16):
        for rows, columns in ((128, 256), (150, 512)):
            x = run.normal(rows, columns, dtype=dtype)
            limit = (448.0 * 6.0 / x.abs().max().float()).reshape(1)
            run.case(
                f"{dtype} {rows}×{columns}",
                partial(_fp4_and_back, x, limit),
                references.exact(x),
                0.15,
                timed=False,
            )
