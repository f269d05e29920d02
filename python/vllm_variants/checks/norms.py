"""RMS norms, rotary embeddings and activations, plain and fused with quantisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check
from .dtypes import FP8, FP8_ROUNDING, FP8_STEP, ROUNDING, floating_types, sixteen_bit_types

EPSILON = 1e-6
SHAPES = ((1, 768), (7, 5120), (83, 8192))


def rounded(rows: int) -> float:
    """The error to allow in float8 outputs: few values fall the other way, but a row may hang on one.

    In a single row (512 bfloat16 products, simulated) more than 3 % came out in 4 of 100 draws; a
    whole step is the bound that always holds.
    """
    return FP8_ROUNDING if rows > 1 else FP8_STEP


@check("norm.rms_norm")
def rms_norm(run: Run) -> None:
    """Out of place."""
    for dtype in floating_types(run):
        for tokens, hidden in SHAPES:
            x, weight = run.normal(tokens, hidden, dtype=dtype), run.normal(hidden, dtype=dtype)
            out = run.empty(tokens, hidden, dtype=dtype)
            run.case(
                f"{dtype} {tokens}×{hidden}",
                partial(ops.rms_norm, out, x, weight, EPSILON),
                references.rms_norm(x, weight, EPSILON),
                ROUNDING[dtype],
                outputs=[out],
            )


@check("norm.fused_add_rms_norm")
def fused_add_rms_norm(run: Run) -> None:
    """In place, the residual added first."""
    for dtype in floating_types(run):
        for tokens, hidden in SHAPES:
            x, residual = (run.normal(tokens, hidden, dtype=dtype) for _ in range(2))
            weight = run.normal(hidden, dtype=dtype)
            out, total = x.clone(), residual.clone()
            # The sum is rounded to the tensor's type before it is normalised.
            added = references.exact((x.cpu().float() + residual.cpu().float()).to(dtype))
            run.case(
                f"{dtype} {tokens}×{hidden}",
                partial(ops.fused_add_rms_norm, out, total, weight, EPSILON),
                (references.rms_norm(added, weight, EPSILON), added),
                ROUNDING[dtype],
                outputs=[out, total],
                restore=[(out, x), (total, residual)],
            )


@check("norm.rms_norm_quant")
def rms_norm_quant(run: Run) -> None:
    """Outputs as static fp8, and per token as fp8 and int8."""
    for dtype in sixteen_bit_types(run):
        for tokens, hidden in SHAPES:
            x, weight = run.normal(tokens, hidden, dtype=dtype), run.normal(hidden, dtype=dtype)
            normed = references.rms_norm(x, weight, EPSILON)
            scale = run.tensor([0.03125], torch.float32)
            out = run.empty(tokens, hidden, dtype=FP8)
            run.case(
                f"static fp8 {dtype} {tokens}×{hidden}",
                partial(torch.ops._C.rms_norm_static_fp8_quant, out, x, weight, scale, EPSILON),
                references.fp8(normed / 0.03125),
                rounded(tokens),
                outputs=[out],
            )
            for kind, largest in ((FP8, 448.0), (torch.int8, 127.0)):
                steps = normed.abs().amax(-1, keepdim=True) / largest
                rounding = references.fp8 if kind is FP8 else references.int8
                run.case(
                    f"per-token {kind} {dtype} {tokens}×{hidden}",
                    partial(ops.rms_norm_dynamic_per_token_quant, x, weight, EPSILON, kind),
                    (rounding(normed / steps), steps),
                    (rounded(tokens), ROUNDING[dtype]),
                )


@check("rotary.embedding")
def rotary_embedding(run: Run) -> None:
    """In place, in NeoX's and GPT-J's order, over whole heads and parts of them."""
    for dtype in floating_types(run):
        for neox in (True, False):
            for tokens, heads, key_heads, size, turned in ((1, 32, 8, 128, 128), (43, 17, 1, 80, 32)):
                positions = run.integers(0, 4096, tokens, dtype=torch.int64)
                cache = run.uniform(4096, turned, dtype=dtype, low=-1)
                query = run.normal(tokens, heads * size, dtype=dtype)
                key = run.normal(tokens, key_heads * size, dtype=dtype)
                q, k = query.clone(), key.clone()
                expected = tuple(
                    references.rotary(positions, x.view(tokens, -1, size), cache, neox).reshape(x.shape)
                    for x in (query, key)
                )
                run.case(
                    f"{'neox' if neox else 'gptj'} {dtype} {tokens}×{heads}/{key_heads} heads of {size}",
                    partial(ops.rotary_embedding, positions, q, k, size, cache, neox),
                    expected,
                    ROUNDING[dtype],
                    outputs=[q, k],
                    restore=[(q, query), (k, key)],
                )


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


# operator → f(gate, up) of the input's two halves
GATED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu_and_mul": lambda a, b: references.silu(a) * b,
    "mul_and_silu": lambda a, b: a * references.silu(b),
    "gelu_and_mul": lambda a, b: _gelu(a) * b,
    "gelu_tanh_and_mul": lambda a, b: _gelu_tanh(a) * b,
}
PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
}


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(gate, up): the two halves of each row in float64."""
    gate, up = references.exact(x).chunk(2, -1)
    return gate, up


@check("activation.gated")
def gated_activations(run: Run) -> None:
    """One half of each row gates the other."""
    for name, function in GATED.items():
        operator = getattr(torch.ops._C, name)
        for dtype in floating_types(run):
            for tokens, size in ((7, 512), (83, 13824)):
                x = run.normal(tokens, 2 * size, dtype=dtype)
                out = run.empty(tokens, size, dtype=dtype)
                run.case(
                    f"{name} {dtype} {tokens}×{size}",
                    partial(operator, out, x),
                    function(*_halves(x)),
                    ROUNDING[dtype],
                    outputs=[out],
                )


@check("activation.plain")
def plain_activations(run: Run) -> None:
    """GELU's three approximations."""
    for name, function in PLAIN.items():
        operator = getattr(torch.ops._C, name)
        for dtype in floating_types(run):
            x = run.normal(83, 4096, dtype=dtype)
            out = run.empty(83, 4096, dtype=dtype)
            run.case(
                f"{name} {dtype}",
                partial(operator, out, x),
                function(references.exact(x)),
                2 * ROUNDING[dtype],
                outputs=[out],
            )


@check("activation.silu_and_mul_quant")
def silu_and_mul_quant(run: Run) -> None:
    """The gated product as static fp8."""
    for dtype in sixteen_bit_types(run):
        for tokens, size in ((1, 512), (83, 4096)):
            x = run.normal(tokens, 2 * size, dtype=dtype)
            scale = run.tensor([0.0625], torch.float32)
            out = run.empty(tokens, size, dtype=FP8)
            gate, up = _halves(x)
            run.case(
                f"{dtype} {tokens}×{size}",
                partial(torch.ops._C.silu_and_mul_quant, out, x, scale),
                references.fp8(references.silu(gate) * up / 0.0625),
                rounded(tokens),
                outputs=[out],
            )
