"""The indexer of sparse attention: its fp8 key cache, and the keys that it picks for each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check, require_operator
from .comparing import marked
from .dtypes import FP8, FP8_STEP
from .paged_attention import padded, tables

SIZE = 128
"""Values of a key, which share one scale."""
SCALE = 4
"""Bytes of a key's scale in the cache, a float32."""
BLOCK = 64
LARGEST = 448.0
LEAST = 1e-4
"""What a key's largest value counts for at least, so that its scale is not zero."""


def keys_of(blocks: torch.Tensor) -> torch.Tensor:
    """The keys of a cache [blocks, block, 132] of bytes, as fp8 [blocks, block, 128]; shares its memory."""
    count, block, _ = blocks.shape
    return blocks.view(count, -1)[:, : block * SIZE].view(FP8).view(count, block, SIZE)


def scales_of(blocks: torch.Tensor) -> torch.Tensor:
    """Their scales, which stand behind all keys of a block, as float32 [blocks, block]; shares its memory."""
    count, block, _ = blocks.shape
    return blocks.view(count, -1)[:, block * SIZE :].view(torch.float32)


def filled_cache(run: Run, blocks: int) -> torch.Tensor:
    """A cache of random keys with scales that are powers of two, [blocks, 64, 132] as bytes."""
    cache = torch.empty(blocks, BLOCK, SIZE + SCALE, dtype=torch.uint8)
    keys_of(cache).copy_(run.normal(blocks, BLOCK, SIZE).cpu().to(FP8))
    scales_of(cache).copy_(torch.exp2(run.integers(-5, 2, blocks, BLOCK).cpu().float()))
    return cache.to(run.device)


def _quantised(keys: torch.Tensor, powers: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(what is kept of keys [tokens, 128], its scales [tokens, 1]), which `powers` makes powers of two."""
    scales = references.exact(keys).abs().amax(-1, keepdim=True).clamp(min=LEAST) / LARGEST
    if powers:
        scales = torch.exp2(torch.ceil(torch.log2(scales)))
    return references.fp8(references.exact(keys) / scales), scales


@check("indexer.quant_and_cache")
def quant_and_cache(run: Run) -> None:
    """Keys to fp8, each with a scale of its own, and into their slots; what has no slot is left out.

    Of bfloat16, the only type that vLLM's models with an indexer have. The operator takes float16 too, and
    reads its bits as whole numbers (`float()` of a uint16_t, seen on 9.0 in 0.33.0): its scales are wrong.
    """
    tokens, blocks = 77, 5
    for form in ("ue8m0", "fp32"):
        keys = run.normal(tokens, SIZE, dtype=torch.bfloat16, scale=3.0)
        slots = run.permutation(blocks * BLOCK, dtype=torch.int64)[:tokens].contiguous()
        slots[5::11] = -1
        cache = torch.zeros(blocks, BLOCK, SIZE + SCALE, dtype=torch.uint8, device=run.device)
        kept = slots.cpu() >= 0
        places = slots.cpu()[kept]
        values, steps = torch.zeros(blocks * BLOCK, SIZE), torch.zeros(blocks * BLOCK, 1)
        expected = (values.double(), steps.double())
        for whole, part in zip(expected, _quantised(keys.cpu()[kept], form == "ue8m0"), strict=True):
            whole[places] = part
        run.case(
            f"{keys.dtype}, scales as {form}, {tokens} keys",
            partial(_cached, keys, cache, slots, form),
            (expected[0].view(blocks, BLOCK, SIZE), expected[1].view(blocks, BLOCK)),
            (1e-3, 1e-6),
            restore=[(cache, cache.clone())],
            worst=2 * FP8_STEP / 1e-3,
        )


def _cached(
    keys: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, form: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the operator, and return all keys of the cache and all scales."""
    ops.indexer_k_quant_and_cache(keys, cache, slots, SIZE, form)
    return keys_of(cache), scales_of(cache)


@check("indexer.gather")
def gather(run: Run) -> None:
    """The keys of several sequences and their scales, from the blocks of the cache into one row of each."""
    for lengths in ((1, 64, 700), (130, 5, 63, 2049, 64)):
        rows, blocks = tables(run, lengths, BLOCK)
        cache = filled_cache(run, blocks)
        ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        keys = run.empty(ends[-1], SIZE, dtype=FP8)
        scales = run.empty(ends[-1], SCALE, dtype=torch.uint8)
        whole = [part.cpu() for part in (keys_of(cache).double(), scales_of(cache).double().unsqueeze(-1))]
        expected = [
            torch.cat([part[row].flatten(0, 1)[:count] for row, count in zip(rows, lengths, strict=True)])
            for part in whole
        ]
        run.case(
            f"keys {lengths}",
            partial(
                ops.cp_gather_indexer_k_quant_cache, cache, keys, scales, padded(run, rows),
                run.tensor(ends, torch.int32),
            ),
            expected,
            0.0,
            outputs=[keys, scales.view(torch.float32)],
        )  # fmt: skip


def _distinct(run: Run, rows: int, columns: int) -> torch.Tensor:
    """Rows of numbers that differ, in random order, below zero and above: no rank depends on a rounding."""
    ranks = torch.stack([run.permutation(columns).cpu() for _ in range(rows)])
    return ((ranks.float() - columns // 2) / 64).to(run.device)


def _picks(
    logits: torch.Tensor, picked: torch.Tensor, operator: Callable[..., object], *arguments: object
) -> torch.Tensor:
    """Call the operator on an output that holds -1, as vLLM does, and mark what it picked of each row."""
    picked.fill_(-1)
    operator(*arguments)
    return marked(picked, logits.shape[1])


@check("indexer.top_k_decode")
def top_k_decode(run: Run) -> None:
    """The 2048 best keys of each query of a decoding step, one or several queries a sequence."""
    best = 2048
    operator = torch.ops._C.top_k_per_row_decode
    count = len(operator.default._schema.arguments)  # 0.11.2 knows no other number of keys and is not told
    for lengths, queries, columns in (((1, 2047, 2048, 5000), 1, 8192), ((3000, 40000), 2, 40960)):
        rows = len(lengths) * queries
        logits, picked = _distinct(run, rows, columns), run.empty(rows, best, dtype=torch.int32)
        ends = [length - queries + 1 + i for length in lengths for i in range(queries)]
        arguments = (
            logits, queries, run.tensor(lengths, torch.int32), picked, rows, logits.stride(0),
            logits.stride(1), best,
        )  # fmt: skip
        run.case(
            f"keys {lengths}, {queries} queries each",
            partial(_picks, logits, picked, operator, *arguments[:count]),
            references.largest(logits, ends, best),
            0.0,
        )


WORKSPACE = 1 << 20
"""Bytes that vLLM gives these operators to work in (indexer_topk.py)."""


def _top_k(run: Run, name: str, shapes: Sequence[tuple[int, int, int]]) -> None:
    """The operator `name` on (rows, columns, how many keys to pick); rows end at different lengths."""
    require_operator(torch.ops._C, name, "vLLM picks keys with top_k_per_row_decode alone")
    operator = getattr(torch.ops._C, name)
    for rows, columns, best in shapes:
        logits, picked = _distinct(run, rows, columns), run.empty(rows, best, dtype=torch.int32)
        ends = [max(1, columns - i * columns // rows) for i in range(rows)]
        workspace = run.empty(WORKSPACE, dtype=torch.uint8)
        lengths = run.tensor(ends, torch.int32)
        run.case(
            f"{best} of {columns} keys, {rows} rows",
            partial(_picks, logits, picked, operator, logits, lengths, picked, workspace, best, columns),
            references.largest(logits, ends, best),
            0.0,
        )


@check("indexer.persistent_top_k")
def persistent_top_k(run: Run) -> None:
    """The best keys of each row by blocks that stay: short rows, long ones, and many rows."""
    _top_k(run, "persistent_topk", ((3, 4096, 512), (7, 70000, 1024), (66, 9000, 2048)))


@check("indexer.cooperative_top_k")
def cooperative_top_k(run: Run) -> None:
    """The best keys of each row by clusters of blocks: few rows, and one wave of them."""
    _top_k(run, "cooperative_topk", ((3, 4096, 512), (8, 70000, 1024), (30, 20000, 2048)))
