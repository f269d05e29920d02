"""PagedAttention v1 and v2, and the merge of partial attention states."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check, require_operator
from .dtypes import ACCUMULATED, FP8, floating_types

PARTITION = 512  # keys per partition of paged attention v2 (csrc/attention/paged_attention_v2.cu)


def paged_caches(
    run: Run,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    block_tables: Sequence[Sequence[int]],
    block_size: int,
    blocks: int,
    kind: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The caches of PagedAttention that hold these sequences, and garbage everywhere else.

    keys and values: one [length, heads, size] tensor a sequence. Returns (key cache
    [blocks, heads, size/x, block, x], value cache [blocks, heads, size, block]).
    """
    heads, size = keys[0].shape[1:]
    x = 16 // kind.itemsize
    key_cache = torch.full((blocks, heads, size // x, block_size, x), float("nan")).to(kind)
    value_cache = torch.full((blocks, heads, size, block_size), float("nan")).to(kind)
    for sequence, (key, value) in enumerate(zip(keys, values, strict=True)):
        for position in range(len(key)):
            block = block_tables[sequence][position // block_size]
            slot = position % block_size
            key_cache[block, :, :, slot, :] = key[position].cpu().reshape(heads, size // x, x).to(kind)
            value_cache[block, :, :, slot] = value[position].cpu().to(kind)
    return key_cache.to(run.device), value_cache.to(run.device)


def tables(run: Run, lengths: Sequence[int], block_size: int, spare: int = 3) -> tuple[list[list[int]], int]:
    """(random block tables for sequences of these lengths, how many blocks there are)."""
    needed = [(length + block_size - 1) // block_size for length in lengths]
    order: list[int] = run.permutation(sum(needed) + spare).tolist()
    rows, start = [], 0
    for count in needed:
        rows.append(order[start : start + count])
        start += count
    return rows, len(order)


def padded(run: Run, rows: Sequence[list[int]]) -> torch.Tensor:
    """Block tables as the operators take them: int32, padded with a valid block."""
    width = max(map(len, rows))
    return run.tensor([row + [row[0]] * (width - len(row)) for row in rows], torch.int32)


class Shape(NamedTuple):
    """The lengths of the sequences, the heads of queries and of keys, a head's size, a block's keys."""

    lengths: tuple[int, ...]
    heads: int
    key_heads: int
    size: int
    block: int


SHAPES = (
    Shape((1, 17, 129), 8, 8, 64, 16),
    Shape((700, 5, 1034), 16, 2, 128, 16),
    Shape((33, 600), 12, 3, 80, 32),
)


class Decode:
    """One query a sequence over random keys and values in a paged cache ("auto", or "fp8")."""

    def __init__(self, run: Run, dtype: torch.dtype, shape: Shape, cache: str) -> None:
        self.dtype, self.shape, self.cache = dtype, shape, cache
        lengths, heads, key_heads, size, block = shape
        self.scale = size**-0.5
        self.step = 0.5 if cache == "fp8" else 1.0
        self.query = run.normal(len(lengths), heads, size, dtype=dtype)
        self.keys, self.values = (
            [run.normal(length, key_heads, size, dtype=dtype) for length in lengths] for _ in range(2)
        )
        if cache == "fp8":
            self.keys, self.values = (
                [(x.float() / self.step).to(FP8) for x in sequences] for sequences in (self.keys, self.values)
            )
        self.rows, blocks = tables(run, lengths, block)
        kind = FP8 if cache == "fp8" else dtype
        # Paged attention multiplies what it does not use by zero, so no NaN pads.
        self.key_cache, self.value_cache = (
            _without_nan(tensor).view(torch.uint8) if cache == "fp8" else _without_nan(tensor)
            for tensor in paged_caches(run, self.keys, self.values, self.rows, block, blocks, kind)
        )

    def expected(self) -> torch.Tensor:
        """The float64 output [sequences, heads, size]."""
        outputs = []
        for query, key, value in zip(self.query, self.keys, self.values, strict=True):
            k, v = references.exact(key) * self.step, references.exact(value) * self.step
            outputs.append(references.attention(query[None], k, v, scale=self.scale)[0][0])
        return torch.stack(outputs)

    @property
    def label(self) -> str:
        """The case's name."""
        lengths, heads, key_heads, size, block = self.shape
        return (
            f"{self.dtype} cache {self.cache}, {heads}/{key_heads} heads of {size},"
            f" blocks of {block}, keys {lengths}"
        )


def _paged(run: Run, version: int) -> None:
    name = f"paged_attention_v{version}"
    require_operator(ops, name, "vLLM attends over its cache with FlashAttention and Triton alone")
    for dtype in floating_types(run):
        for shape in SHAPES:
            for cache in ("auto", "fp8"):
                if cache == "auto" or dtype is not torch.float32:
                    _paged_case(run, version, Decode(run, dtype, shape, cache))


def _paged_case(run: Run, version: int, decode: Decode) -> None:
    count, heads, size = decode.query.shape
    shape, expected, longest = decode.shape, decode.expected(), max(decode.shape.lengths)
    out = run.empty(count, heads, size, dtype=decode.dtype)
    lengths, block_table = run.tensor(shape.lengths, torch.int32), padded(run, decode.rows)
    scale = run.tensor([decode.step], torch.float32)
    caches = (decode.key_cache, decode.value_cache)
    options = (
        shape.key_heads, decode.scale, block_table, lengths, shape.block, longest, None, decode.cache,
        scale, scale,
    )  # fmt: skip
    if version == 1:
        call = partial(ops.paged_attention_v1, out, decode.query, *caches, *options)
    else:
        parts = (longest + PARTITION - 1) // PARTITION
        parted = run.empty(count, heads, parts, size, dtype=decode.dtype)
        sums, largest = (run.empty(count, heads, parts, dtype=torch.float32) for _ in range(2))
        call = partial(ops.paged_attention_v2, out, sums, largest, parted, decode.query, *caches, *options)
    run.case(decode.label, call, expected, ACCUMULATED[decode.dtype], outputs=[out])


def _without_nan(cache: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.isnan(cache.float()), torch.zeros((), device=cache.device), cache.float()).to(
        cache.dtype
    )


@check("attention.paged_v1")
def paged_attention_v1(run: Run) -> None:
    """One query a sequence, all keys in one pass."""
    _paged(run, 1)


@check("attention.paged_v2")
def paged_attention_v2(run: Run) -> None:
    """One query a sequence, keys in partitions that are merged."""
    _paged(run, 2)


@check("attention.merge_states")
def merge_states(run: Run) -> None:
    """Two partial outputs joined by their log-sum-exps."""
    for dtype in floating_types(run):
        for tokens, heads, size in ((1, 4, 64), (77, 16, 128)):
            first, second = (run.normal(tokens, heads, size, dtype=dtype) for _ in range(2))
            weights = [run.normal(heads, tokens, scale=2.0) for _ in range(2)]
            out, lse = (
                run.empty(tokens, heads, size, dtype=dtype),
                run.empty(heads, tokens, dtype=torch.float32),
            )
            both = torch.stack([references.exact(sums) for sums in weights])
            share = both.softmax(0).transpose(1, 2)[..., None]
            run.case(
                f"{dtype} {tokens} tokens, {heads} heads of {size}",
                partial(ops.merge_attn_states, out, first, weights[0], second, weights[1], lse),
                (
                    share[0] * references.exact(first) + share[1] * references.exact(second),
                    both.logsumexp(0),
                ),
                (ACCUMULATED[dtype], 1e-5),
                outputs=[out, lse],
            )
