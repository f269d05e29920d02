"""FlashMLA: multi-head latent attention, dense decode (bf16, fp16, fp8 cache) and sparse prefill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from . import references
from .checking import Run, Unsupported, check, moved
from .comparing import first_output
from .dtypes import FP8
from .paged_attention import padded, tables

# The second is where releases before 0.14 have it.
flashmla = moved("vllm.v1.attention.ops.flashmla", "vllm.attention.ops.flashmla")
RANK, ROPE, BLOCK = 512, 64, 64


def _require(run: Run, question: Callable[[], tuple[bool, str | None]]) -> None:
    """Raise Unsupported unless vLLM's own question says yes; a dry run asks nothing."""
    supported, reason = (True, None) if run.dry else question()
    if not supported:
        raise Unsupported(reason)


class Latent:
    """Sequences in a latent cache of blocks [blocks, 64, 1, 576], with queries [batch, q, heads, 576]."""

    def __init__(
        self, run: Run, dtype: torch.dtype, lengths: tuple[int, ...], queries: int, heads: int
    ) -> None:
        drawn = torch.bfloat16 if dtype is FP8 else dtype
        rows, blocks = tables(run, lengths, BLOCK)
        self.heads, self.queries = heads, queries
        self.query = run.normal(len(lengths), queries, heads, RANK + ROPE, dtype=drawn).to(dtype)
        self.cache = run.normal(blocks, BLOCK, 1, RANK + ROPE, dtype=drawn, scale=0.5).to(dtype)
        self.block_table, self.lengths = padded(run, rows), run.tensor(lengths, torch.int32)
        self.scale = (RANK + ROPE) ** -0.5
        self.rows, self.counts = rows, lengths

    @property
    def arguments(self) -> tuple[object, ...]:
        """What the decoding functions take first: queries, cache, where its keys are, the size of a value."""
        return self.query, self.cache, self.block_table, self.lengths, RANK

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(output [batch, q, heads, 512], log-sum-exp [batch, heads, q]) in float64."""
        outputs, sums = [], []
        for query, row, count in zip(self.query, self.rows, self.counts, strict=True):
            key = self.cache.cpu().float()[row].flatten(0, 1)[:count]
            out, total = references.attention(query.float(), key, key[..., :RANK], scale=self.scale)
            outputs.append(out)
            sums.append(total)
        return torch.stack(outputs), torch.stack(sums)


def _dense(latent: Latent) -> Callable[..., object]:
    """A decoding call that still takes the scale and the mask."""
    plan, splits = flashmla.get_mla_metadata(latent.lengths, latent.queries * latent.heads, 1)
    return partial(flashmla.flash_mla_with_kvcache, *latent.arguments, plan, splits)


def _dense_fp8(latent: Latent) -> Callable[..., object]:
    """The same for an fp8 cache, which releases since 0.14 have a function of its own for."""
    one = torch.ones(1, device=latent.query.device)
    size = latent.queries * latent.heads
    if hasattr(flashmla, "flash_mla_with_kvcache_fp8"):
        plan, splits = flashmla.get_mla_metadata_dense_fp8(latent.lengths, size, 1)
        call = partial(flashmla.flash_mla_with_kvcache_fp8, *latent.arguments, plan, splits)
    else:
        plan, splits = flashmla.get_mla_metadata(latent.lengths, size, 1, is_fp8_kvcache=True)
        call = partial(flashmla.flash_mla_with_kvcache, *latent.arguments, plan, splits, is_fp8_kvcache=True)
    return partial(call, descale_q=one, descale_k=one)


def _decode(run: Run, dtype: torch.dtype, tolerance: float) -> None:
    _require(run, flashmla.is_flashmla_dense_supported)
    for lengths, queries, heads in (((128, 511, 1030), 1, 16), ((77, 2049), 2, 128)):
        latent = Latent(run, dtype, lengths, queries, heads)
        decode = _dense_fp8(latent) if dtype is FP8 else _dense(latent)
        run.case(
            f"{dtype} {heads} heads, {queries} queries, keys {lengths}",
            partial(decode, latent.scale, causal=True),
            latent.expected(),
            (tolerance, 1e-2 if dtype is FP8 else 1e-4),
        )


@check("flash_mla.dense")
def dense(run: Run) -> None:
    """Decoding over a cache of bf16 and of fp16: outputs and log-sum-exps."""
    for dtype in (torch.bfloat16, torch.float16):
        _decode(run, dtype, 8e-3 if dtype is torch.bfloat16 else 2e-3)


@check("flash_mla.dense_fp8")
def dense_fp8(run: Run) -> None:
    """Decoding with fp8 queries over an fp8 cache."""
    _decode(run, FP8, 8e-2)


_sparse_prefill = (
    flashmla.flash_mla_sparse_fwd
    if hasattr(flashmla, "flash_mla_sparse_fwd")
    else flashmla.flash_mla_sparse_prefill  # releases before 0.14
)


@check("flash_mla.sparse")
def sparse(run: Run) -> None:
    """Prefill in which each query sees the keys that an index lists for it."""
    _require(run, flashmla.is_flashmla_sparse_supported)
    for queries, keys, chosen in ((1, 1024, 128), (62, 4096, 256)):
        heads = 128
        query = run.normal(queries, heads, RANK + ROPE, dtype=torch.bfloat16)
        cache = run.normal(keys, 1, RANK + ROPE, dtype=torch.bfloat16, scale=0.5)
        picks = (
            torch.stack([run.permutation(keys)[:chosen] for _ in range(queries)]).unsqueeze(1).contiguous()
        )
        scale = (RANK + ROPE) ** -0.5
        expected = torch.cat(
            [
                references.attention(
                    query[i : i + 1].float(),
                    cache.float()[picks[i, 0].long()],
                    cache.float()[picks[i, 0].long()][..., :RANK],
                    scale=scale,
                    causal=False,
                )[0]
                for i in range(queries)
            ]
        )
        run.case(
            f"prefill, {queries} queries, {chosen} of {keys} keys",
            partial(first_output, _sparse_prefill, query, cache, picks, scale),
            expected,
            8e-3,
        )


# A token's row in the sparse fp8 cache, in bytes: the latent part as fp8, one float32 scale for each 128
# values of it, and the rotary part as bf16 (FlashMLA's flash_mla_interface.py).
SCALED = 128


def _packed(run: Run, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(a cache of random rows [blocks, 64, 1, 656] as bytes, what they stand for [slots, 1, 576])."""
    rows = blocks * BLOCK
    latent = run.normal(rows, RANK, scale=0.5).cpu().to(FP8)
    # Powers of two: what the kernel multiplies out is bf16 without rounding.
    scales = torch.exp2(run.integers(-1, 2, rows, RANK // SCALED).cpu().float())
    positional = run.normal(rows, ROPE, dtype=torch.bfloat16, scale=0.5).cpu()
    parts = [part.view(torch.uint8).reshape(rows, -1) for part in (latent, scales, positional)]
    values = torch.cat(
        [latent.float() * scales.repeat_interleave(SCALED, 1), positional.float()], -1
    ).unsqueeze(1)
    return torch.cat(parts, -1).view(blocks, BLOCK, 1, -1).to(run.device), values


@check("flash_mla.sparse_decode")
def sparse_decode(run: Run) -> None:
    """Decoding over an fp8 cache in which each query sees the keys that an index lists for it."""
    _require(run, flashmla.is_flashmla_sparse_supported)
    heads, scale = 128, (RANK + ROPE) ** -0.5
    for batch, queries, blocks, chosen in ((1, 1, 9, 128), (3, 2, 40, 512)):
        cache, values = _packed(run, blocks)
        query = run.normal(batch, queries, heads, RANK + ROPE, dtype=torch.bfloat16)
        picked = [run.permutation(blocks * BLOCK)[:chosen] for _ in range(batch * queries)]
        picks = torch.stack(picked).view(batch, queries, chosen).contiguous()
        lengths = run.tensor([blocks * BLOCK] * batch, torch.int32)
        plan, splits = flashmla.get_mla_metadata(
            lengths, queries * heads, 1, num_heads_q=heads, topk=chosen, is_fp8_kvcache=True
        )
        table = torch.zeros(batch, blocks, dtype=torch.int32, device=run.device)
        expected = [
            references.attention(one.float(), seen, seen[..., :RANK], scale=scale, causal=False)[0]
            for one, row in zip(query.flatten(0, 1).unsqueeze(1), picked, strict=True)
            for seen in (values[row.cpu().long()],)
        ]
        run.case(
            f"{batch} sequences of {queries} queries, {chosen} of {blocks * BLOCK} keys",
            partial(
                first_output, flashmla.flash_mla_with_kvcache, query, cache, table, lengths, RANK, plan,
                splits, softmax_scale=scale, indices=picks, is_fp8_kvcache=True,
            ),
            torch.cat(expected).view(batch, queries, heads, RANK),
            8e-3,
        )  # fmt: skip
