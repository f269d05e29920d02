"""Quantisation of activations to fp8, int8 and fp4."""

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Unsupported, check
from .norms import ROUNDED, dtypes

FP8 = torch.float8_e4m3fn
SHAPES = ((1, 512), (7, 4096), (200, 5120))


@check("quantisation.fp8")
def fp8(run):
    for dtype in dtypes(run):
        for tokens, size in SHAPES:
            x = run.normal(tokens, size, dtype=dtype)
            label = f"{dtype} {tokens}×{size}"
            exact = references.exact(x)
            scale = run.tensor([0.015625], torch.float32)
            run.case(
                f"static {label}",
                lambda x=x, scale=scale: ops.scaled_fp8_quant(x, scale)[0],
                references.fp8(exact / 0.015625),
                ROUNDED / 4,
            )
            whole = exact.abs().max() / 448.0
            run.case(
                f"per-tensor {label}",
                lambda x=x: _with_flat_scale(*ops.scaled_fp8_quant(x)),
                (references.fp8(exact / whole), whole.reshape(1)),
                (ROUNDED, 1e-6),
            )
            rows = exact.abs().amax(-1, keepdim=True) / 448.0
            run.case(
                f"per-token {label}",
                lambda x=x: ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True),
                (references.fp8(exact / rows), rows),
                (ROUNDED, 1e-6),
            )


def _with_flat_scale(q, scale):
    return q, scale.reshape(1)  # of shape 1×1 in 0.11.2


@check("quantisation.fp8_groups")
def fp8_groups(run):
    _groups(run, FP8, "per_token_group_fp8_quant", 448.0, references.fp8)


@check("quantisation.int8_groups")
def int8_groups(run):
    _groups(run, torch.int8, "per_token_group_quant_int8", 127.0, references.int8)


def _groups(run, kind, name, largest, rounding):
    operator = getattr(torch.ops._C, name)
    tail = (False,) if kind is FP8 else ()
    for dtype in dtypes(run)[:-1]:
        for tokens, size in SHAPES:
            for group in (64, 128):
                x = run.normal(tokens, size, dtype=dtype)
                out = run.empty(tokens, size, dtype=kind)
                steps = run.empty(tokens, size // group, dtype=torch.float32)
                expected = references.exact(x).view(tokens, -1, group).abs().amax(-1) / largest
                scaled = references.exact(x) / references.spread(expected, 1, group)
                run.case(
                    f"{dtype} {tokens}×{size}, groups of {group}",
                    lambda x=x, out=out, steps=steps, group=group: operator(
                        x, out, steps, group, 1e-10, -largest, largest, *tail
                    ),
                    (rounding(scaled), expected),
                    (ROUNDED, 1e-6),
                    outputs=[out, steps],
                )


@check("quantisation.int8")
def int8(run):
    for dtype in dtypes(run):
        for tokens, size in SHAPES:
            x = run.normal(tokens, size, dtype=dtype)
            exact, label = references.exact(x), f"{dtype} {tokens}×{size}"
            scale = run.tensor([0.03125], torch.float32)
            run.case(
                f"static {label}",
                lambda x=x, scale=scale: ops.scaled_int8_quant(x, scale)[0],
                references.int8(exact / 0.03125),
                5e-3,
            )
            rows = exact.abs().amax(-1, keepdim=True) / 127.0
            run.case(
                f"per-token {label}",
                lambda x=x: ops.scaled_int8_quant(x)[:2],
                (references.int8(exact / rows), rows),
                (5e-3, 1e-6),
            )
            run.case(
                f"asymmetric {label}",
                lambda x=x: _dequantised(*ops.scaled_int8_quant(x, symmetric=False)),
                exact,
                2e-2,
            )


def _dequantised(q, scale, zero_point):
    return (q.float() - zero_point.float()) * scale


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unswizzled(scales, rows, columns):
    """Undo the 128×4 interleaving of fp4 block scales; returns the first rows × columns, float64."""
    tiles = references.exact(scales).reshape(-1, 4 * ((columns + 3) // 4))
    high, wide = tiles.shape[0] // 128, tiles.shape[1] // 4
    plain = tiles.reshape(high, wide, 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(high * 128, wide * 4)
    return plain[:rows, :columns]


def fp4_values(packed):
    """The float64 values of packed e2m1 pairs, low nibble first."""
    codes = torch.stack([packed.cpu() & 0xF, packed.cpu() >> 4], -1).flatten(-2).long()
    table = torch.tensor(E2M1, dtype=torch.float64)
    return torch.where(codes >= 8, -table[codes % 8], table[codes % 8])


def fp4_dequantised(packed, scales, global_scale):
    """What a packed fp4 matrix with swizzled block scales stands for, in float64."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    blocks = unswizzled(scales, rows, columns // 16)
    return fp4_values(packed) * blocks.repeat_interleave(16, 1) / references.exact(global_scale)


def _fp4_and_back(x, limit):
    """Quantise on the GPU, dequantise on the CPU: which of two equally near codes was taken is left open."""
    packed, scales = ops.scaled_fp4_quant(x, limit)
    return fp4_dequantised(packed, scales, limit)


@check("quantisation.fp4")
def fp4(run):
    major, minor = run.capability
    if not run.dry and not ops.cutlass_scaled_mm_supports_fp4(major * 10 + minor):
        raise Unsupported(f"vLLM says that fp4 is not supported on {major}.{minor}")
    for dtype in (torch.float16, torch.bfloat16):
        for rows, columns in ((128, 256), (150, 512)):
            x = run.normal(rows, columns, dtype=dtype)
            limit = (448.0 * 6.0 / x.abs().max().float()).reshape(1)
            run.case(
                f"{dtype} {rows}×{columns}",
                lambda x=x, limit=limit: _fp4_and_back(x, limit),
                references.exact(x),
                0.15,
                timed=False,
            )
