"""Writing keys and values into the KV cache, in every layout, and copying its blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from vllm import _custom_ops as ops

from . import references
from .checking import Run, check, require_operator
from .dtypes import FP8, floating_types, sixteen_bit_types

# (cache to change, slot, row): put the row of one token where it belongs.
Place = Callable[[torch.Tensor, int, torch.Tensor], None]


def _slots(run: Run, tokens: int, blocks: int, block_size: int) -> torch.Tensor:
    return run.permutation(blocks * block_size, dtype=torch.int64)[:tokens].contiguous()


def _cache_reference(
    initial: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor, place: Place
) -> torch.Tensor:
    expected = references.exact(initial).clone()
    for slot, row in zip(slots.tolist(), rows, strict=True):
        place(expected, slot, row)
    return expected


@check("cache.reshape_and_cache")
def reshape_and_cache(run: Run) -> None:
    """The PagedAttention layout, in the model's type and in fp8."""
    tokens, heads, size, block, blocks = 42, 8, 64, 16, 9
    for dtype in floating_types(run):
        for cache in ("auto", "fp8"):
            kind, step = (dtype, 1.0) if cache == "auto" else (FP8, 0.5)
            x = 16 // kind.itemsize
            key, value = (run.normal(tokens, heads, size, dtype=dtype) for _ in range(2))
            slots = _slots(run, tokens, blocks, block)
            key_cache = torch.zeros(blocks, heads, size // x, block, x, device=run.device).to(kind)
            value_cache = torch.zeros(blocks, heads, size, block, device=run.device).to(kind)

            def place_key(cache: torch.Tensor, slot: int, row: torch.Tensor, x: int = x) -> None:
                cache[slot // block, :, :, slot % block, :] = row.reshape(heads, size // x, x)

            def place_value(cache: torch.Tensor, slot: int, row: torch.Tensor) -> None:
                cache[slot // block, :, :, slot % block] = row

            _cache_case(
                run, f"{dtype} cache {cache}", ops.reshape_and_cache, key, value, key_cache, value_cache,
                slots, cache, step, place_key, place_value,
            )  # fmt: skip


@check("cache.reshape_and_cache_flash")
def reshape_and_cache_flash(run: Run) -> None:
    """The FlashAttention layout [blocks, block, heads, size], in the model's type and in fp8."""
    tokens, heads, size, block, blocks = 42, 4, 128, 16, 9
    for dtype in floating_types(run):
        for cache in ("auto", "fp8"):
            kind, step = (dtype, 1.0) if cache == "auto" else (FP8, 0.5)
            key, value = (run.normal(tokens, heads, size, dtype=dtype) for _ in range(2))
            slots = _slots(run, tokens, blocks, block)
            key_cache, value_cache = (
                torch.zeros(blocks, block, heads, size, device=run.device).to(kind) for _ in range(2)
            )

            def place(cache: torch.Tensor, slot: int, row: torch.Tensor) -> None:
                cache[slot // block, slot % block] = row

            _cache_case(
                run, f"{dtype} cache {cache}", ops.reshape_and_cache_flash, key, value, key_cache,
                value_cache, slots, cache, step, place, place,
            )  # fmt: skip


def _cache_case(
    run: Run,
    label: str,
    operator: Callable[..., None],
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    cache: str,
    step: float,
    *places: Place,
) -> None:
    expected = [
        _cache_reference(initial, slots, _stored(references.exact(rows) / step, cache), place)
        for initial, rows, place in zip((key_cache, value_cache), (key, value), places, strict=True)
    ]
    scale = run.tensor([step], torch.float32)
    initial = [key_cache.clone(), value_cache.clone()]
    raw = [_viewed(key_cache, cache), _viewed(value_cache, cache)]
    run.case(
        label,
        partial(operator, key, value, *raw, slots, cache, scale, scale),
        expected,
        1e-3 if cache == "fp8" else 0.0,
        outputs=[key_cache, value_cache],
        restore=list(zip((key_cache, value_cache), initial, strict=True)),
    )


def _stored(rows: torch.Tensor, cache: str) -> torch.Tensor:
    """Float64 rows as a cache of this kind ("auto", "fp8") keeps them."""
    return references.fp8(rows) if cache == "fp8" else rows


def _viewed(tensor: torch.Tensor, cache: str) -> torch.Tensor:
    """A cache as the operators take it: fp8 as bytes."""
    return tensor.view(torch.uint8) if cache == "fp8" else tensor


@check("cache.mla")
def concat_and_cache_mla(run: Run) -> None:
    """The latent cache [blocks, block, rank + rope] of multi-head latent attention, 16-bit and fp8."""
    tokens, rank, rope, block, blocks = 42, 512, 64, 16, 8
    for dtype in sixteen_bit_types(run):
        for cache in ("auto", "fp8"):
            kind, step = (dtype, 1.0) if cache == "auto" else (FP8, 0.5)
            latent, positional = run.normal(tokens, rank, dtype=dtype), run.normal(tokens, rope, dtype=dtype)
            slots = _slots(run, tokens, blocks, block)
            kv_cache = torch.zeros(blocks, block, rank + rope, device=run.device).to(kind)
            rows = torch.cat([references.exact(latent), references.exact(positional)], -1) / step

            def place(cache: torch.Tensor, slot: int, row: torch.Tensor) -> None:
                cache[slot // block, slot % block] = row

            raw = _viewed(kv_cache, cache)
            scale = run.tensor([step], torch.float32)
            run.case(
                f"{dtype} cache {cache}",
                partial(ops.concat_and_cache_mla, latent, positional, raw, slots, cache, scale),
                _cache_reference(kv_cache, slots, _stored(rows, cache), place),
                1e-3 if cache == "fp8" else 0.0,
                outputs=[kv_cache],
                restore=[(kv_cache, kv_cache.clone())],
            )


@check("cache.copy_blocks")
def copy_blocks(run: Run) -> None:
    """Blocks copied to others in two layers, keys and values."""
    require_operator(ops, "copy_blocks", "vLLM's engine shares blocks and copies none")
    for dtype in floating_types(run):
        caches = [run.normal(8, 16, 4, 64, dtype=dtype) for _ in range(4)]
        keys, values = caches[:2], caches[2:]
        mapping = run.tensor([[0, 5], [0, 6], [3, 7]], torch.int64)
        expected = [references.exact(cache).clone() for cache in caches]
        for blocks in expected:
            blocks[5], blocks[6], blocks[7] = blocks[0], blocks[0], blocks[3]
        initial = [cache.clone() for cache in caches]
        run.case(
            f"{dtype}",
            partial(ops.copy_blocks, keys, values, mapping),
            expected,
            0.0,
            outputs=caches,
            restore=list(zip(caches, initial, strict=True)),
        )
