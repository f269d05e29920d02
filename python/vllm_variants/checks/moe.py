"""Mixtures of experts: routing, permutation, and the grouped products (Triton, CUTLASS, Marlin)."""

from __future__ import annotations

import inspect
import itertools
from functools import partial

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts as triton_experts
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
from vllm.model_executor.layers.fused_moe.moe_permute_unpermute import moe_permute, moe_unpermute
from vllm.model_executor.layers.quantization.utils.marlin_utils_test import marlin_quantize
from vllm.scalar_type import scalar_types

from . import references
from .checking import Run, check, moved, require
from .dtypes import FP8, ROUNDING, sixteen_bit_types
from .marlin import NO_ORDER, require_marlin

# The second is where releases before 0.15 have it.
fused_marlin_moe = moved(
    "vllm.model_executor.layers.fused_moe.experts.marlin_moe",
    "vllm.model_executor.layers.fused_moe.fused_marlin_moe",
).fused_marlin_moe
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 1.2e-2}


def _routing(run: Run, tokens: int, experts: int, chosen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights float32 [tokens, chosen], expert ids int32), renormalised top-k of random scores."""
    scores = run.normal(tokens, experts)
    weights, ids = references.exact(scores).softmax(-1).topk(chosen, -1)
    weights = (weights / weights.sum(-1, keepdim=True)).float().to(run.device)
    return weights.contiguous(), ids.to(torch.int32).to(run.device).contiguous()


@check("moe.topk_softmax")
def topk_softmax(run: Run) -> None:
    """The weights and ids of the chosen experts, with and without renormalisation."""
    for tokens, experts, chosen in ((1, 8, 2), (33, 64, 6), (222, 256, 8)):
        for renormalise in (False, True):
            scores = run.normal(tokens, experts, scale=2.0)
            weights = run.empty(tokens, chosen, dtype=torch.float32)
            ids, source = (run.empty(tokens, chosen, dtype=torch.int32) for _ in range(2))
            expected, picked = references.exact(scores).softmax(-1).topk(chosen, -1)
            if renormalise:
                expected = expected / expected.sum(-1, keepdim=True)
            run.case(
                f"{tokens} tokens, {chosen} of {experts}{', renormalised' if renormalise else ''}",
                partial(ops.topk_softmax, weights, ids, source, scores, renormalise),
                (expected, picked),
                (1e-5, 0.0),
                outputs=[weights, ids],
            )


@check("moe.grouped_topk")
def grouped_topk(run: Run) -> None:
    """DeepSeek's routing: the best groups by the sum of their two best biased scores, then top-k."""
    for tokens in (1, 64):
        experts, groups, kept, chosen = 256, 8, 4, 8
        scores = run.uniform(tokens, experts)
        bias = run.normal(experts, scale=0.1)
        biased = references.exact(scores) + references.exact(bias)
        grouped = biased.view(tokens, groups, -1)
        best = grouped.topk(2, -1).values.sum(-1).topk(kept, -1).indices
        open_groups = torch.zeros(tokens, groups, dtype=torch.bool).scatter(1, best, True)
        masked = biased.masked_fill(~open_groups.repeat_interleave(experts // groups, 1), float("-inf"))
        ids = masked.topk(chosen, -1).indices.sort(-1).values
        weights = references.exact(scores).gather(1, ids)
        weights = 2.5 * weights / weights.sum(-1, keepdim=True)

        call = partial(_grouped_topk, run, scores, bias, groups, kept, chosen)
        run.case(f"{tokens} tokens", call, (weights, ids), (1e-4, 0.0))


def _grouped_topk(
    run: Run, scores: torch.Tensor, bias: torch.Tensor, groups: int, kept: int, chosen: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, expert ids) of vLLM's operator, by ascending id: the order among the chosen is free."""
    # scoring_func 0: the scores are already what they should be
    weights, ids = torch.ops._moe_C.grouped_topk(scores, groups, kept, chosen, True, 2.5, bias, 0)
    if run.dry:  # the operator returned nothing to sort
        return torch.zeros(len(scores), chosen), torch.zeros(len(scores), chosen)
    ids, order = ids.to(torch.int64).sort(-1)
    return weights.gather(1, order), ids


@check("moe.align_block_size")
def align_block_size(run: Run) -> None:
    """Tokens sorted by expert, each expert padded to whole blocks."""
    for tokens, experts, chosen, block in ((5, 8, 2, 16), (223, 64, 6, 32), (1024, 256, 8, 64)):
        _, ids = _routing(run, tokens, experts, chosen)
        slots, owners = _blocks(ids.cpu().flatten().long(), experts, block)
        run.case(
            f"{tokens} tokens, {chosen} of {experts}, blocks of {block}",
            partial(_aligned, ids, block, experts, len(slots), len(owners)),
            (slots, owners, torch.tensor([len(slots)])),
            0.0,
        )


def _blocks(ids: torch.Tensor, experts: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(slots by expert, each expert's padded with `len(ids)` to whole blocks; the expert of each block)."""
    counts = torch.bincount(ids, minlength=experts)
    padded = (counts + block - 1) // block * block
    slots = torch.full((int(padded.sum()),), len(ids), dtype=torch.int64)
    start = 0
    for expert in range(experts):
        own = (ids == expert).nonzero().flatten()
        slots[start : start + len(own)] = own
        start += int(padded[expert])
    return slots, torch.arange(experts).repeat_interleave(padded // block)


def _aligned(
    ids: torch.Tensor, block: int, experts: int, total: int, blocks: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(slots, the expert of each block, how many slots) by vLLM's operator, as `_blocks` orders them."""
    order, owners, padded = moe_align_block_size(ids, block, experts)
    # The order of an expert's own tokens is free: sort each expert's run of blocks.
    order, owners = order[:total].to(torch.int64), owners[:blocks].to(torch.int64)
    expert = owners.repeat_interleave(block) * (1 << 32)
    return (expert + order).sort().values - expert, owners, padded


@check("moe.sum")
def moe_sum(run: Run) -> None:
    """The sum of each token's outputs over its experts."""
    for dtype in (*sixteen_bit_types(run), torch.float32):
        for tokens, chosen, hidden in ((1, 2, 128), (33, 4, 2048)):
            x = run.normal(tokens, chosen, hidden, dtype=dtype)
            out = run.empty(tokens, hidden, dtype=dtype)
            run.case(
                f"{dtype} {tokens} tokens of {hidden}, {chosen} experts",
                partial(ops.moe_sum, x, out),
                references.exact(x).sum(1),
                ROUNDING[dtype],
                outputs=[out],
            )


@check("moe.permute")
def permute(run: Run) -> None:
    """Tokens to their experts' rows and back, weighted."""
    for dtype in sixteen_bit_types(run):
        for tokens, experts, chosen in ((2, 8, 2), (133, 64, 6)):
            x = run.normal(tokens, 512, dtype=dtype)
            weights, ids = _routing(run, tokens, experts, chosen)
            weights = weights * run.uniform(tokens, chosen, low=0.5, high=1.0)
            out = run.empty(tokens, 512, dtype=dtype)

            call = partial(_there_and_back, x, ids, experts, weights, out)
            expected = references.exact(x) * references.exact(weights).sum(-1, keepdim=True)
            run.case(
                f"there and back {dtype} {tokens} tokens, {chosen} of {experts}",
                call,
                expected,
                ROUNDING[dtype],
                outputs=[out],
            )
            counts = torch.bincount(ids.cpu().flatten().long(), minlength=experts)
            starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            run.case(f"offsets {dtype} {tokens} tokens", call, starts, 0.0, timed=False)


def _there_and_back(
    x: torch.Tensor, ids: torch.Tensor, experts: int, weights: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Permute x to its experts' rows and back into `out`; returns where each expert's rows begin."""
    offsets: torch.Tensor
    rows, _, offsets, back, *_ = moe_permute(x, None, ids, experts)
    moe_unpermute(out, rows, weights, back)
    return offsets


@check("moe.fused_experts")
def fused_experts(run: Run) -> None:
    """vLLM's Triton kernels for 16-bit experts."""
    for dtype in sixteen_bit_types(run):
        for tokens, experts, chosen, hidden, inner in ((3, 8, 2, 512, 256), (130, 16, 4, 256, 512)):
            x = run.normal(tokens, hidden, dtype=dtype)
            w1 = run.normal(experts, 2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
            w2 = run.normal(experts, hidden, inner, dtype=dtype, scale=inner**-0.5)
            weights, ids = _routing(run, tokens, experts, chosen)
            run.case(
                f"{dtype} {tokens} tokens, {chosen} of {experts}, {hidden}→{inner}",
                partial(triton_experts, x, w1, w2, weights, ids),
                references.experts(x, w1, w2, weights, ids),
                TOLERANCE[dtype],
            )


@check("moe.cutlass_fp8")
def cutlass_fp8(run: Run) -> None:
    """One CUTLASS launch for all experts' products, fp8, as vLLM groups them."""
    require(run, ops.cutlass_group_gemm_supported, "grouped fp8 products are")
    for per_token, per_channel in ((False, False), (True, True)):
        for experts, n, k in ((8, 512, 1024), (40, 1024, 256)):
            sizes = (run.integers(1, 9, experts, dtype=torch.int64) * 16).tolist()
            starts = [0, *itertools.accumulate(sizes)]
            rows = starts[-1]
            a, b = run.normal(rows, k).to(FP8), run.normal(experts, n, k).to(FP8)
            scale_a = run.uniform(rows if per_token else 1, 1, low=0.01, high=0.1)
            scale_b = run.uniform(experts, n if per_channel else 1, low=0.01, high=0.1)
            out = run.empty(rows, n, dtype=torch.bfloat16)
            offsets = run.tensor(starts[:-1], torch.int64)
            problems = run.tensor([[size, n, k] for size in sizes], torch.int32)
            strides = [
                torch.full((experts,), width, dtype=torch.int64, device=run.device) for width in (k, n)
            ]
            rows_a = scale_a if per_token else scale_a.expand(rows, 1)
            parts = [
                references.matmul(a[low:high], b[e].t(), rows_a[low:high], scale_b[e][None])
                for e, (low, high) in enumerate(itertools.pairwise(starts))
            ]
            run.case(
                f"{experts} experts, {rows}×{n}×{k}, {'per-token' if per_token else 'per-tensor'}",
                partial(
                    ops.cutlass_moe_mm, out, a, b, scale_a, scale_b, offsets, problems,
                    strides[0], strides[0], strides[1], per_token, per_channel,
                ),
                torch.cat(parts),
                ROUNDING[torch.bfloat16],
                outputs=[out],
            )  # fmt: skip


MARLIN_PARAMETERS = inspect.signature(fused_marlin_moe).parameters
MARLIN_WEIGHTS, MARLIN_GROUP = scalar_types.uint4b8, 128


def _marlin_experts(
    run: Run, dtype: torch.dtype, experts: int, n: int, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(what the weights stand for [experts, n, k], the packed weights, their scales)."""
    exact, packed, scales = [], [], []
    for _ in range(experts):
        drawn = run.normal(k, n, dtype=dtype, scale=k**-0.5).cpu()
        w, q, s, *_ = marlin_quantize(drawn, MARLIN_WEIGHTS, MARLIN_GROUP, *NO_ORDER)
        exact.append(w.T)
        packed.append(q)
        scales.append(s)
    whole, codes, steps = (torch.stack(parts).to(run.device) for parts in (exact, packed, scales))
    return whole, codes, steps


@check("moe.marlin")
def marlin(run: Run) -> None:
    """4-bit experts through the Marlin kernels."""
    require_marlin(run, MARLIN_WEIGHTS, zero_points=False)
    for dtype in sixteen_bit_types(run):
        for tokens, experts, chosen, hidden, inner in ((1, 4, 2, 256, 512), (65, 12, 3, 512, 256)):
            x = run.normal(tokens, hidden, dtype=dtype)
            w1, q1, s1 = _marlin_experts(run, dtype, experts, 2 * inner, hidden)
            w2, q2, s2 = _marlin_experts(run, dtype, experts, hidden, inner)
            weights, ids = _routing(run, tokens, experts, chosen)
            scores = (None,) if "gating_output" in MARLIN_PARAMETERS else ()  # releases before 0.14
            space = {} if not run.dry else {"workspace": torch.zeros(8, dtype=torch.int32)}
            run.case(
                f"{dtype} {tokens} tokens, {chosen} of {experts}, {hidden}→{inner}",
                partial(
                    fused_marlin_moe, x, q1, q2, None, None, s1, s2, *scores, weights, ids,
                    quant_type_id=MARLIN_WEIGHTS.id, global_num_experts=experts, **space,
                ),
                references.experts(x, w1, w2, weights, ids),
                TOLERANCE[dtype],
            )  # fmt: skip
