"""PagedAttention v1 and v2, the KV cache operators, and the merge of partial attention states."""

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


def _slots(run, tokens, blocks, block_size):
    return run.permutation(blocks * block_size, dtype=torch.int64)[:tokens].contiguous()


def _cache_reference(initial, slots, rows, place):
    expected = references.exact(initial).clone()
    for slot, row in zip(slots.tolist(), rows, strict=True):
        place(expected, slot, row)
    return expected


@check("cache.reshape_and_cache")
def reshape_and_cache(run):
    """The PagedAttention layout, in the model's type and in fp8."""
    tokens, heads, size, block, blocks = 42, 8, 64, 16, 9
    for dtype in dtypes(run):
        for cache in ("auto", "fp8"):
            kind, step = (dtype, 1.0) if cache == "auto" else (FP8, 0.5)
            x = 16 // kind.itemsize
            key, value = (run.normal(tokens, heads, size, dtype=dtype) for _ in range(2))
            slots = _slots(run, tokens, blocks, block)
            key_cache = torch.zeros(blocks, heads, size // x, block, x, device=run.device).to(kind)
            value_cache = torch.zeros(blocks, heads, size, block, device=run.device).to(kind)

            def place_key(cache, slot, row, x=x):
                cache[slot // block, :, :, slot % block, :] = row.reshape(heads, size // x, x)

            def place_value(cache, slot, row):
                cache[slot // block, :, :, slot % block] = row

            _cache_case(
                run, f"{dtype} cache {cache}", ops.reshape_and_cache, key, value, key_cache, value_cache,
                slots, cache, step, place_key, place_value,
            )  # fmt: skip


@check("cache.reshape_and_cache_flash")
def reshape_and_cache_flash(run):
    """The FlashAttention layout [blocks, block, heads, size], in the model's type and in fp8."""
    tokens, heads, size, block, blocks = 42, 4, 128, 16, 9
    for dtype in dtypes(run):
        for cache in ("auto", "fp8"):
            kind, step = (dtype, 1.0) if cache == "auto" else (FP8, 0.5)
            key, value = (run.normal(tokens, heads, size, dtype=dtype) for _ in range(2))
            slots = _slots(run, tokens, blocks, block)
            caches = [torch.zeros(blocks, block, heads, size, device=run.device).to(kind) for _ in range(2)]

            def place(cache, slot, row):
                cache[slot // block, slot % block] = row

            _cache_case(
                run, f"{dtype} cache {cache}", ops.reshape_and_cache_flash, key, value, *caches,
                slots, cache, step, place, place,
            )  # fmt: skip


def _cache_case(run, label, operator, key, value, key_cache, value_cache, slots, cache, step, *places):
    rounding = references.fp8 if cache == "fp8" else (lambda values: values)
    expected = [
        _cache_reference(initial, slots, rounding(references.exact(rows) / step), place)
        for initial, rows, place in zip((key_cache, value_cache), (key, value), places, strict=True)
    ]
    one = run.tensor([step], torch.float32)
    initial = [key_cache.clone(), value_cache.clone()]
    raw = [each.view(torch.uint8) if cache == "fp8" else each for each in (key_cache, value_cache)]
    run.case(
        label,
        lambda: operator(key, value, *raw, slots, cache, one, one),
        expected,
        1e-3 if cache == "fp8" else 0.0,
        outputs=[key_cache, value_cache],
        restore=list(zip((key_cache, value_cache), initial, strict=True)),
    )


@check("cache.mla")
def concat_and_cache_mla(run):
    tokens, rank, rope, block, blocks = 42, 512, 64, 16, 8
    for dtype in dtypes(run)[:-1]:
        for cache in ("auto", "fp8"):
            kind, step = (dtype, 1.0) if cache == "auto" else (FP8, 0.5)
            latent, positional = run.normal(tokens, rank, dtype=dtype), run.normal(tokens, rope, dtype=dtype)
            slots = _slots(run, tokens, blocks, block)
            kv_cache = torch.zeros(blocks, block, rank + rope, device=run.device).to(kind)
            rows = torch.cat([references.exact(latent), references.exact(positional)], -1) / step
            rows = references.fp8(rows) if cache == "fp8" else rows

            def place(cache, slot, row):
                cache[slot // block, slot % block] = row

            raw = kv_cache.view(torch.uint8) if cache == "fp8" else kv_cache
            one = run.tensor([step], torch.float32)
            run.case(
                f"{dtype} cache {cache}",
                lambda a=latent, b=positional, raw=raw, slots=slots, cache=cache, one=one: (
                    ops.concat_and_cache_mla(a, b, raw, slots, cache, one)
                ),
                _cache_reference(kv_cache, slots, rows, place),
                1e-3 if cache == "fp8" else 0.0,
                outputs=[kv_cache],
                restore=[(kv_cache, kv_cache.clone())],
            )


@check("cache.copy_blocks")
def copy_blocks(run):
    for dtype in dtypes(run):
        caches = [run.normal(8, 16, 4, 64, dtype=dtype) for _ in range(4)]
        keys, values = caches[:2], caches[2:]
        mapping = run.tensor([[0, 5], [0, 6], [3, 7]], torch.int64)
        expected = [references.exact(each).clone() for each in caches]
        for each in expected:
            each[5], each[6], each[7] = each[0], each[0], each[3]
        initial = [each.clone() for each in caches]
        run.case(
            f"{dtype}",
            lambda keys=keys, values=values, mapping=mapping: ops.copy_blocks(keys, values, mapping),
            expected,
            0.0,
            outputs=caches,
            restore=list(zip(caches, initial, strict=True)),
        )
