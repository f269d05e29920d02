"""FlashMLA: multi-head latent attention, dense decode (bf16, fp16, fp8 cache) and sparse prefill."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from vllm.attention.ops import flashmla

from . import references
from .checking import Run, Unsupported, check
from .comparing import first_output
from .dtypes import FP8
from .paged_attention import padded, tables

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

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(output [batch, q, heads, 512], log-sum-exp [batch, heads, q]) in float64."""
        outputs, sums = [], []
        for query, row, count in zip(self.query, self.rows, self.counts, strict=True):
            key = self.cache.cpu().float()[row].flatten(0, 1)[:count]
            out, total = references.attention(query.float(), key, key[..., :RANK], scale=self.scale)
            outputs.append(out)
            sums.append(total)
        return torch.stack(outputs), torch.stack(sums)


def _decode(run: Run, dtype: torch.dtype, tolerance: float) -> None:
    _require(run, flashmla.is_flashmla_dense_supported)
    for lengths, queries, heads in (((128, 511, 1030), 1, 16), ((77, 2049), 2, 128)):
        latent = Latent(run, dtype, lengths, queries, heads)
        fp8: dict[str, bool | torch.Tensor] = {"is_fp8_kvcache": True} if dtype is FP8 else {}
        plan, splits = flashmla.get_mla_metadata(latent.lengths, queries * heads, 1, **fp8)
        if dtype is FP8:
            one = torch.ones(1, device=run.device)
            fp8 |= {"descale_q": one, "descale_k": one}
        run.case(
            f"{dtype} {heads} heads, {queries} queries, keys {lengths}",
            partial(
                flashmla.flash_mla_with_kvcache,
                latent.query,
                latent.cache,
                latent.block_table,
                latent.lengths,
                RANK,
                plan,
                splits,
                latent.scale,
                causal=True,
                **fp8,
            ),
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
            partial(first_output, flashmla.flash_mla_sparse_prefill, query, cache, picks, scale),
            expected,
            8e-3,
        )
