"""RMS norms, rotary embeddings and activations, plain and fused with quantisation."""

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import HALF_PRECISION, check

EPSILON = 1e-6
FP8 = torch.float8_e4m3fn
SHAPES = ((1, 768), (7, 5120), (83, 8192))
# A value near the edge between two float8 neighbours may fall either way: 6 % or 12 % of it.
ROUNDED = 3e-2
FLOAT8_STEP = 2**-3


def rounded(rows):
    """The error to allow in float8 outputs: few values fall the other way, but a row may hang on one.

    In a single row (512 bfloat16 products, simulated) more than 3 % came out in 4 of 100 draws; a
    whole step is the bound that always holds.
    """
    return ROUNDED if rows > 1 else FLOAT8_STEP


def dtypes(run):
    """The types to try: bfloat16 arithmetic begins with 8.0."""
    half = (torch.float16, torch.bfloat16) if run.capability >= (8, 0) else (torch.float16,)
    return (*half, torch.float32)


@check("norm.rms_norm")
def rms_norm(run):
    for dtype in dtypes(run):
        for tokens, hidden in SHAPES:
            x, weight = run.normal(tokens, hidden, dtype=dtype), run.normal(hidden, dtype=dtype)
            out = run.empty(tokens, hidden, dtype=dtype)
            run.case(
                f"{dtype} {tokens}×{hidden}",
                lambda out=out, x=x, weight=weight: ops.rms_norm(out, x, weight, EPSILON),
                references.rms_norm(x, weight, EPSILON),
                HALF_PRECISION[dtype],
                outputs=[out],
            )


@check("norm.fused_add_rms_norm")
def fused_add_rms_norm(run):
    for dtype in dtypes(run):
        for tokens, hidden in SHAPES:
            x, residual = (run.normal(tokens, hidden, dtype=dtype) for _ in range(2))
            weight = run.normal(hidden, dtype=dtype)
            out, total = x.clone(), residual.clone()
            # The sum is rounded to the tensor's type before it is normalised.
            added = references.exact((x.cpu().float() + residual.cpu().float()).to(dtype))
            run.case(
                f"{dtype} {tokens}×{hidden}",
                lambda out=out, total=total, weight=weight: ops.fused_add_rms_norm(
                    out, total, weight, EPSILON
                ),
                (references.rms_norm(added, weight, EPSILON), added),
                HALF_PRECISION[dtype],
                outputs=[out, total],
                restore=[(out, x), (total, residual)],
            )


@check("norm.rms_norm_quant")
def rms_norm_quant(run):
    for dtype in dtypes(run)[:-1]:
        for tokens, hidden in SHAPES:
            x, weight = run.normal(tokens, hidden, dtype=dtype), run.normal(hidden, dtype=dtype)
            normed = references.rms_norm(x, weight, EPSILON)
            scale = run.tensor([0.03125], torch.float32)
            out = run.empty(tokens, hidden, dtype=FP8)
            run.case(
                f"static fp8 {dtype} {tokens}×{hidden}",
                lambda out=out, x=x, weight=weight, scale=scale: torch.ops._C.rms_norm_static_fp8_quant(
                    out, x, weight, scale, EPSILON
                ),
                references.fp8(normed / 0.03125),
                rounded(tokens),
                outputs=[out],
            )
            for kind, largest in ((FP8, 448.0), (torch.int8, 127.0)):
                steps = normed.abs().amax(-1, keepdim=True) / largest
                rounding = references.fp8 if kind is FP8 else references.int8
                run.case(
                    f"per-token {kind} {dtype} {tokens}×{hidden}",
                    lambda x=x, weight=weight, kind=kind: ops.rms_norm_dynamic_per_token_quant(
                        x, weight, EPSILON, kind
                    ),
                    (rounding(normed / steps), steps),
                    (rounded(tokens), HALF_PRECISION[dtype]),
                )


@check("rotary.embedding")
def rotary_embedding(run):
    for dtype in dtypes(run):
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
                    lambda p=positions, q=q, k=k, s=size, c=cache, n=neox: ops.rotary_embedding(
                        p, q, k, s, c, n
                    ),
                    expected,
                    HALF_PRECISION[dtype],
                    outputs=[q, k],
                    restore=[(q, query), (k, key)],
                )


def _gelu(x):
    return torch.nn.functional.gelu(x)


def _gelu_tanh(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


# operator → f(gate, up) of the input's two halves
GATED = {
    "silu_and_mul": lambda a, b: references.silu(a) * b,
    "mul_and_silu": lambda a, b: a * references.silu(b),
    "gelu_and_mul": lambda a, b: _gelu(a) * b,
    "gelu_tanh_and_mul": lambda a, b: _gelu_tanh(a) * b,
}
PLAIN = {
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
}


@check("activation.gated")
def gated_activations(run):
    for name, function in GATED.items():
        operator = getattr(torch.ops._C, name)
        for dtype in dtypes(run):
            for tokens, size in ((7, 512), (83, 13824)):
                x = run.normal(tokens, 2 * size, dtype=dtype)
                out = run.empty(tokens, size, dtype=dtype)
                run.case(
                    f"{name} {dtype} {tokens}×{size}",
                    lambda operator=operator, out=out, x=x: operator(out, x),
                    function(*references.exact(x).chunk(2, -1)),
                    HALF_PRECISION[dtype],
                    outputs=[out],
                )


@check("activation.plain")
def plain_activations(run):
    for name, function in PLAIN.items():
        operator = getattr(torch.ops._C, name)
        for dtype in dtypes(run):
            x = run.normal(83, 4096, dtype=dtype)
            out = run.empty(83, 4096, dtype=dtype)
            run.case(
                f"{name} {dtype}",
                lambda operator=operator, out=out, x=x: operator(out, x),
                function(references.exact(x)),
                2 * HALF_PRECISION[dtype],
                outputs=[out],
            )


@check("activation.silu_and_mul_quant")
def silu_and_mul_quant(run):
    for dtype in dtypes(run)[:-1]:
        for tokens, size in ((1, 512), (83, 4096)):
            x = run.normal(tokens, 2 * size, dtype=dtype)
            scale = run.tensor([0.0625], torch.float32)
            out = run.empty(tokens, size, dtype=FP8)
            gate, up = references.exact(x).chunk(2, -1)
            run.case(
                f"{dtype} {tokens}×{size}",
                lambda out=out, x=x, scale=scale: torch.ops._C.silu_and_mul_quant(out, x, scale),
                references.fp8(references.silu(gate) * up / 0.0625),
                rounded(tokens),
                outputs=[out],
            )
