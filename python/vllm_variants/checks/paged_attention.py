"""PagedAttention v1 and v2, and the merge of partial attention states."""

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import check
from .norms import dtypes

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 8e-3, torch.float32: 1e-4}
PARTITION = 512  # keys per partition of paged attention v2 (csrc/attention/paged_attention_v2.cu)
FP8 = torch.float8_e4m3fn


def paged_caches(run, keys, values, block_tables, block_size, blocks, kind):
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


def tables(run, lengths, block_size, spare=3):
    """Random block tables (a list of lists) for sequences of these lengths, and how many blocks."""
    needed = [(length + block_size - 1) // block_size for length in lengths]
    order = run.permutation(sum(needed) + spare).tolist()
    found, start = [], 0
    for count in needed:
        found.append(order[start : start + count])
        start += count
    return found, len(order)


def padded(run, rows):
    """Block tables as the operators take them: int32, padded with a valid block."""
    width = max(map(len, rows))
    return run.tensor([row + [row[0]] * (width - len(row)) for row in rows], torch.int32)


def _paged(run, version):
    shapes = (
        ((1, 17, 129), 8, 8, 64, 16),
        ((700, 5, 1034), 16, 2, 128, 16),
        ((33, 600), 12, 3, 80, 32),
    )
    for dtype in dtypes(run):
        for lengths, heads, key_heads, size, block_size in shapes:
            for cache in ("auto", "fp8"):
                if cache == "fp8" and dtype is torch.float32:
                    continue
                _paged_case(run, version, dtype, lengths, heads, key_heads, size, block_size, cache)


def _paged_case(run, version, dtype, lengths, heads, key_heads, size, block_size, cache):
    scale = size**-0.5
    step = 0.5 if cache == "fp8" else 1.0
    query = run.normal(len(lengths), heads, size, dtype=dtype)
    keys, values = (
        [run.normal(length, key_heads, size, dtype=dtype) for length in lengths] for _ in range(2)
    )
    if cache == "fp8":
        keys, values = ([(x.float() / step).to(FP8) for x in each] for each in (keys, values))
    rows, blocks = tables(run, lengths, block_size)
    kind = FP8 if cache == "fp8" else dtype
    key_cache, value_cache = paged_caches(run, keys, values, rows, block_size, blocks, kind)
    if cache == "fp8":
        # Paged attention multiplies what it does not use by zero, so no NaN in float8 pads.
        key_cache, value_cache = (_without_nan(each).view(torch.uint8) for each in (key_cache, value_cache))
    else:
        key_cache, value_cache = _without_nan(key_cache), _without_nan(value_cache)
    expected = torch.stack(
        [
            references.attention(
                q[None], references.exact(k) * step, references.exact(v) * step, scale=scale
            )[0][0]
            for q, k, v in zip(query, keys, values, strict=True)
        ]
    )
    out = run.empty(len(lengths), heads, size, dtype=dtype)
    lengths_tensor, block_table = run.tensor(lengths, torch.int32), padded(run, rows)
    one = run.tensor([step], torch.float32)
    longest = max(lengths)
    common = (key_heads, scale, block_table, lengths_tensor, block_size, longest, None, cache, one, one)
    if version == 1:

        def call():
            ops.paged_attention_v1(out, query, key_cache, value_cache, *common)
    else:
        parts = (longest + PARTITION - 1) // PARTITION
        partial = run.empty(len(lengths), heads, parts, size, dtype=dtype)
        sums, largest = (run.empty(len(lengths), heads, parts, dtype=torch.float32) for _ in range(2))

        def call():
            ops.paged_attention_v2(out, sums, largest, partial, query, key_cache, value_cache, *common)

    run.case(
        f"{dtype} cache {cache}, {heads}/{key_heads} heads of {size}, blocks of {block_size}, keys {lengths}",
        call,
        expected,
        TOLERANCE[dtype],
        outputs=[out],
    )


def _without_nan(cache):
    return torch.where(torch.isnan(cache.float()), torch.zeros((), device=cache.device), cache.float()).to(
        cache.dtype
    )


@check("attention.paged_v1")
def paged_attention_v1(run):
    _paged(run, 1)


@check("attention.paged_v2")
def paged_attention_v2(run):
    _paged(run, 2)


@check("attention.merge_states")
def merge_states(run):
    for dtype in dtypes(run):
        for tokens, heads, size in ((1, 4, 64), (77, 16, 128)):
            first, second = (run.normal(tokens, heads, size, dtype=dtype) for _ in range(2))
            weights = [run.normal(heads, tokens, scale=2.0) for _ in range(2)]
            out, lse = (
                run.empty(tokens, heads, size, dtype=dtype),
                run.empty(heads, tokens, dtype=torch.float32),
            )
            both = torch.stack([references.exact(each) for each in weights])
            share = both.softmax(0).transpose(1, 2)[..., None]
            run.case(
                f"{dtype} {tokens} tokens, {heads} heads of {size}",
                lambda out=out, lse=lse, a=first, b=second, w=weights: ops.merge_attn_states(
                    out, a, w[0], b, w[1], lse
                ),
                (
                    share[0] * references.exact(first) + share[1] * references.exact(second),
                    both.logsumexp(0),
                ),
                (TOLERANCE[dtype], 1e-5),
                outputs=[out, lse],
            )
