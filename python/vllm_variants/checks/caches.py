"""Writing keys and values into the KV cache, in every layout, and copying its blocks."""

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import check
from .norms import dtypes

FP8 = torch.float8_e4m3fn


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
