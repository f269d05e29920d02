"""Mixtures of experts: routing, permutation, and the grouped products (Triton, CUTLASS, Marlin)."""

import itertools

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers.fused_moe.fused_marlin_moe import fused_marlin_moe
from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts as triton_experts
from vllm.model_executor.layers.fused_moe.moe_align_block_size import moe_align_block_size
from vllm.model_executor.layers.fused_moe.moe_permute_unpermute import moe_permute, moe_unpermute
from vllm.model_executor.layers.quantization.utils.marlin_utils_test import marlin_quantize
from vllm.scalar_type import scalar_types

from . import references
from .checking import HALF_PRECISION, Unsupported, check
from .marlin import ask_marlin

FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 1.2e-2}


def _types(run):
    return (torch.float16, torch.bfloat16) if run.capability >= (8, 0) else (torch.float16,)


def _routing(run, tokens, experts, chosen):
    """(weights float32 [tokens, chosen], expert ids int32), renormalised top-k of random scores."""
    scores = run.normal(tokens, experts)
    weights, ids = references.exact(scores).softmax(-1).topk(chosen, -1)
    weights = (weights / weights.sum(-1, keepdim=True)).float().to(run.device)
    return weights.contiguous(), ids.to(torch.int32).to(run.device).contiguous()


@check("moe.topk_softmax")
def topk_softmax(run):
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
                lambda w=weights, i=ids, s=source, x=scores, r=renormalise: ops.topk_softmax(w, i, s, x, r),
                (expected, picked),
                (1e-5, 0.0),
                outputs=[weights, ids],
            )


@check("moe.grouped_topk")
def grouped_topk(run):
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

        def call(scores=scores, bias=bias, sizes=(groups, kept, chosen)):
            # scoring_func 0: the scores are already what they should be
            got, picked = torch.ops._moe_C.grouped_topk(scores, *sizes, True, 2.5, bias, 0)
            picked, order = picked.to(torch.int64).sort(-1)
            return got.gather(1, order), picked

        run.case(f"{tokens} tokens", _shaped(call, run, tokens, chosen), (weights, ids), (1e-4, 0.0))


def _shaped(call, run, tokens, chosen):
    """In a dry run the operator returns nothing to sort."""
    if not run.dry:
        return call

    def dry():
        try:
            return call()
        except IndexError:
            return torch.zeros(tokens, chosen), torch.zeros(tokens, chosen)

    return dry


@check("moe.align_block_size")
def align_block_size(run):
    for tokens, experts, chosen, block in ((5, 8, 2, 16), (223, 64, 6, 32), (1024, 256, 8, 64)):
        _, ids = _routing(run, tokens, experts, chosen)
        counts = torch.bincount(ids.cpu().flatten().long(), minlength=experts)
        padded_counts = (counts + block - 1) // block * block
        total = int(padded_counts.sum())
        owners = torch.arange(experts).repeat_interleave(padded_counts // block)
        slots = torch.full((total,), tokens * chosen, dtype=torch.int64)
        start = 0
        for expert in range(experts):
            mine = (ids.cpu().flatten() == expert).nonzero().flatten()
            slots[start : start + len(mine)] = mine
            start += int(padded_counts[expert])

        def call(ids=ids, block=block, experts=experts, total=total, owners=owners):
            order, blocks, padded = moe_align_block_size(ids, block, experts)
            # The order of an expert's own tokens is free: sort each expert's run of blocks.
            order, blocks = order[:total].to(torch.int64), blocks[: len(owners)].to(torch.int64)
            rank = blocks.repeat_interleave(block) * (1 << 32) + order
            return rank.sort().values - blocks.repeat_interleave(block) * (1 << 32), blocks, padded

        run.case(
            f"{tokens} tokens, {chosen} of {experts}, blocks of {block}",
            call,
            (slots, owners, torch.tensor([total])),
            0.0,
        )


@check("moe.sum")
def moe_sum(run):
    for dtype in (*_types(run), torch.float32):
        for tokens, chosen, hidden in ((1, 2, 128), (33, 4, 2048)):
            x = run.normal(tokens, chosen, hidden, dtype=dtype)
            out = run.empty(tokens, hidden, dtype=dtype)
            run.case(
                f"{dtype} {tokens} tokens of {hidden}, {chosen} experts",
                lambda x=x, out=out: ops.moe_sum(x, out),
                references.exact(x).sum(1),
                HALF_PRECISION[dtype],
                outputs=[out],
            )


@check("moe.permute")
def permute(run):
    """Tokens to their experts' rows and back, weighted."""
    for dtype in _types(run):
        for tokens, experts, chosen in ((2, 8, 2), (133, 64, 6)):
            x = run.normal(tokens, 512, dtype=dtype)
            weights, ids = _routing(run, tokens, experts, chosen)
            weights = weights * run.uniform(tokens, chosen, low=0.5, high=1.0)
            out = run.empty(tokens, 512, dtype=dtype)

            def call(x=x, ids=ids, experts=experts, weights=weights, out=out):
                rows, _, offsets, back, *_ = moe_permute(x, None, ids, experts)
                moe_unpermute(out, rows, weights, back)
                return offsets

            expected = references.exact(x) * references.exact(weights).sum(-1, keepdim=True)
            run.case(
                f"there and back {dtype} {tokens} tokens, {chosen} of {experts}",
                call,
                expected,
                HALF_PRECISION[dtype],
                outputs=[out],
            )
            counts = torch.bincount(ids.cpu().flatten().long(), minlength=experts)
            starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            run.case(f"offsets {dtype} {tokens} tokens", call, starts, 0.0, timed=False)


@check("moe.fused_experts")
def fused_experts(run):
    """vLLM's Triton kernels for 16-bit experts."""
    for dtype in _types(run):
        for tokens, experts, chosen, hidden, inner in ((3, 8, 2, 512, 256), (130, 16, 4, 256, 512)):
            x = run.normal(tokens, hidden, dtype=dtype)
            w1 = run.normal(experts, 2 * inner, hidden, dtype=dtype, scale=hidden**-0.5)
            w2 = run.normal(experts, hidden, inner, dtype=dtype, scale=inner**-0.5)
            weights, ids = _routing(run, tokens, experts, chosen)
            run.case(
                f"{dtype} {tokens} tokens, {chosen} of {experts}, {hidden}→{inner}",
                lambda x=x, w1=w1, w2=w2, w=weights, i=ids: triton_experts(x, w1, w2, w, i),
                references.experts(x, w1, w2, weights, ids),
                TOLERANCE[dtype],
            )


@check("moe.cutlass_fp8")
def cutlass_fp8(run):
    """One CUTLASS launch for all experts' products, fp8, as vLLM groups them."""
    major, minor = run.capability
    if not run.dry and not ops.cutlass_group_gemm_supported(major * 10 + minor):
        raise Unsupported(f"vLLM says that grouped fp8 products are not supported on {major}.{minor}")
    for per_token, per_channel in ((False, False), (True, True)):
        for experts, n, k in ((8, 512, 1024), (40, 1024, 256)):
            sizes = (run.integers(1, 9, experts, dtype=torch.int64) * 16).tolist()
            starts = [0]
            for size in sizes:
                starts.append(starts[-1] + size)
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
                lambda o=out, a=a, b=b, sa=scale_a, sb=scale_b, f=offsets, p=problems, s=strides, t=per_token,
                c=per_channel: ops.cutlass_moe_mm(o, a, b, sa, sb, f, p, s[0], s[0], s[1], t, c),
                torch.cat(parts),
                HALF_PRECISION[torch.bfloat16],
                outputs=[out],
            )  # fmt: skip


@check("moe.marlin")
def marlin(run):
    """4-bit experts through the Marlin kernels."""
    kind, group = scalar_types.uint4b8, 128
    ask_marlin(run, kind, zero_points=False)
    for dtype in _types(run):
        for tokens, experts, chosen, hidden, inner in ((1, 4, 2, 256, 512), (65, 12, 3, 512, 256)):
            x = run.normal(tokens, hidden, dtype=dtype)
            made = []
            for n, k in ((2 * inner, hidden), (hidden, inner)):
                whole, packed, scales = [], [], []
                for _ in range(experts):
                    w, q, s, *_ = marlin_quantize(
                        run.normal(k, n, dtype=dtype, scale=k**-0.5).cpu(), kind, group, False
                    )
                    whole.append(w.T)
                    packed.append(q)
                    scales.append(s)
                made.append([torch.stack(each).to(run.device) for each in (whole, packed, scales)])
            (w1, q1, s1), (w2, q2, s2) = made
            weights, ids = _routing(run, tokens, experts, chosen)
            space = {} if not run.dry else {"workspace": torch.zeros(8, dtype=torch.int32)}
            run.case(
                f"{dtype} {tokens} tokens, {chosen} of {experts}, {hidden}→{inner}",
                lambda x=x, q=(q1, q2), s=(s1, s2), w=weights, i=ids, e=experts, k=space: fused_marlin_moe(
                    x, *q, None, None, *s, None, w, i,
                    quant_type_id=kind.id, global_num_experts=e, is_k_full=True, **k,
                ),
                references.experts(x, w1, w2, weights, ids),
                TOLERANCE[dtype],
            )  # fmt: skip
