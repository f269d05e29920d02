"""What the operators should compute, in float64 on the CPU, from their definitions.

Every function takes CPU or GPU tensors of any dtype and returns float64 CPU tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def exact(tensor: Tensor) -> Tensor:
    """The tensor's values in float64 on the CPU."""
    return tensor.detach().to("cpu").double()


def largest(values: Tensor, ends: Sequence[int], count: int) -> Tensor:
    """Ones at the `count` largest of the first `ends` of each row of `values`, zeros elsewhere."""
    ones = torch.zeros(values.shape, dtype=torch.float64)
    for row, known, end in zip(ones, exact(values), ends, strict=True):
        row[known[:end].topk(min(count, end)).indices] = 1.0
    return ones


def fp8(values: Tensor) -> Tensor:
    """Round to float8 e4m3, saturating, and back to float64."""
    return values.clamp(-448.0, 448.0).float().to(torch.float8_e4m3fn).double()


def int8(values: Tensor) -> Tensor:
    """Round half to even to int8, saturating, as float64."""
    return values.round().clamp(-128, 127)


def matmul(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor | float = 1.0,
    scale_b: Tensor | float = 1.0,
    bias: Tensor | None = None,
) -> Tensor:
    """(scale_a · a) @ (scale_b · b) + bias; the scales broadcast against their operand."""
    product = (exact(a) * _scale(scale_a)) @ (exact(b) * _scale(scale_b))
    return product if bias is None else product + exact(bias)


def _scale(scale: Tensor | float) -> Tensor | float:
    return exact(scale) if isinstance(scale, Tensor) else scale


def spread(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat each entry of a block-scale matrix over its block of `rows` × `columns` elements."""
    return exact(scales).repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + epsilon) · weight, over the last dimension."""
    x = exact(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * exact(weight)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(output [queries, heads, v size], log-sum-exp [heads, queries]) of one sequence.

    q is [queries, heads, size], k and v are [keys, key heads, size]; the queries are the last ones
    of the sequence. `window` is how many keys to the left of its own a query still sees.
    """
    q, k, v = exact(q), exact(k), exact(v)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    position = torch.arange(q.shape[0]).unsqueeze(1) + k.shape[0] - q.shape[0]
    key = torch.arange(k.shape[0]).unsqueeze(0)
    hidden = torch.zeros(q.shape[0], k.shape[0], dtype=torch.bool)
    if causal:
        hidden |= key > position
    if window is not None:
        hidden |= key < position - window
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


def rotary(positions: Tensor, x: Tensor, cache: Tensor, neox: bool) -> Tensor:
    """Rotate the first `cache.shape[1]` elements of every head of x [tokens, heads, size]."""
    x, cache = exact(x), exact(cache)[positions.cpu().long()]
    half = cache.shape[1] // 2
    cosine, sine = cache[:, None, :half], cache[:, None, half:]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if neox:
        first, second = turned[..., :half], turned[..., half:]
    else:
        first, second = turned[..., 0::2], turned[..., 1::2]
    real, imaginary = first * cosine - second * sine, second * cosine + first * sine
    both = torch.cat([real, imaginary], -1) if neox else torch.stack([real, imaginary], -1).flatten(-2)
    return torch.cat([both, rest], -1)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    return x * torch.sigmoid(x)


def experts(x: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    """A mixture of experts: Σ weight · (silu(x w1_gateᵀ) · (x w1_upᵀ)) w2ᵀ over each token's experts.

    x [tokens, hidden], w1 [experts, 2·inner, hidden], w2 [experts, hidden, inner].
    """
    x, w1, w2 = exact(x), exact(w1), exact(w2)
    weights, ids = exact(weights), ids.cpu().long()
    out = torch.zeros(x.shape[0], w2.shape[1], dtype=torch.float64)
    for expert in range(w1.shape[0]):
        token, slot = (ids == expert).nonzero(as_tuple=True)
        gate, up = (x[token] @ w1[expert].T).chunk(2, -1)
        out.index_add_(0, token, weights[token, slot, None] * ((silu(gate) * up) @ w2[expert].T))
    return out


def selective_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    z: Tensor,
    bias: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence over one sequence; returns (output [dim, length], final state [dim, n]).

    h ← exp(Δ A) h + Δ B u,  y = C h + D u, gated by silu(z), with Δ = softplus(delta + bias).
    """
    u, delta, a, b, c, d, z, bias = map(exact, (u, delta, a, b, c, d, z, bias))
    step = torch.nn.functional.softplus(delta + bias[:, None])
    state = exact(state).clone()
    columns = []
    for t in range(u.shape[1]):
        state = torch.exp(step[:, t, None] * a) * state + step[:, t, None] * b[None, :, t] * u[:, t, None]
        columns.append((state * c[None, :, t]).sum(-1) + d * u[:, t])
    return torch.stack(columns, -1) * silu(z), state
